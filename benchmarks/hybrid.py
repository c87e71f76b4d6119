"""Search by vectors, by words, and by both: all-MiniLM-L6-v2 and BM25 on Cranfield.

The learned weights are judged by five-fold cross-validation; intervals are 95% bootstrap intervals over the queries,
and differences are paired. Queries and documents have unrelated ids, so none is left out.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from measure import report

import mmcl
from mmcl.data.sources.beir import open_beir
from mmcl.encoding.prompts import document_prompt
from mmcl.evaluation import Scores, compare
from mmcl.evaluation.rankings import judge_hybrid
from mmcl.retrieval import LexicalIndex

DATA = Path(__file__).parents[2] / "shared" / "data" / "cranfield"
METRICS = ("ndcg@10", "recall@100")


def main() -> None:
    """Judge, print and write ``hybrid.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="sample:minilm")
    parser.add_argument("--data", default=str(DATA), help="a folder in BEIR's layout")
    args = parser.parse_args()
    beir = open_beir(args.data)
    ids, texts = list(beir.corpus), list(beir.corpus.values())
    encoder = mmcl.load(args.model)
    index = mmcl.Index.build(encoder.encode(texts, prompt=document_prompt(encoder)), ids)
    start = time.perf_counter()
    lexical = LexicalIndex.build(texts, ids, show_progress=False)
    seconds = time.perf_counter() - start
    found = judge_hybrid(mmcl.Searcher(index, encoder, lexical=lexical), beir, (10, 100), self_matches="keep")
    rows = [row(name, scores) for name, scores in found.scores.items()]
    parts = {name: {"query_to_document": scores} for name, scores in found.scores.items()}
    differences = {
        f"{name} - {before}": compare(parts[before], parts[name], METRICS).to_dict()["metrics"]
        for before, name in (("vectors", "rrf"), ("vectors", "learned"), ("rrf", "learned"), ("words", "vectors"))
    }
    sizes: dict[str, Any] = {"documents": len(ids), "queries": len(beir.queries), "computed_in": encoder.compute}
    learned = found.learned.to_dict() | {"weights": found.learned.weights}
    report(
        __file__, rows, **sizes, torch=torch.__version__, words=lexical.info(), words_seconds=seconds, learned=learned,
        differences=differences,
    )  # fmt: skip
    print(f"learned weights {found.learned.weights}; without each fifth of the queries {found.learned.folds}")
    for name, metrics in differences.items():
        for metric, of in metrics.items():
            print(
                f"{name} {metric}: {of['difference']:+.4f} ({of['low']:+.4f} – {of['high']:+.4f}), p {of['p_holm']:.4f}"
            )


def row(name: str, scores: Scores) -> dict[str, Any]:
    """A line of the table."""
    cells: dict[str, Any] = {"search": name}
    for metric in METRICS:
        low, high = scores.intervals[metric]
        cells |= {metric: scores.metrics[metric], f"{metric} interval": f"{low:.4f} – {high:.4f}"}
    return cells


if __name__ == "__main__":
    main()
