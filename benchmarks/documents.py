"""Search in one's own documents before and after fine-tuning on them: `configs/simcse_minilm.yaml` on Cranfield.

The pairs learned are title and text of each document; the 225 queries are never seen. Judged with 95% bootstrap
intervals, and by a paired test over the queries.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import report

import mmcl
from mmcl.data.sources.beir import open_beir
from mmcl.evaluation import Scores, beir_retrieval, compare

HERE = Path(__file__).parents[1]
DATA = HERE.parent / "shared" / "data" / "cranfield"
METRICS = ("ndcg@10", "map", "mrr")
START = "sample:minilm"


def main() -> None:
    """Train, judge, print and write ``documents.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model of an earlier run, instead of training one")
    args = parser.parse_args()
    if args.model:
        tuned = mmcl.load(args.model)
    else:
        data = [f"data.train.source={DATA / 'corpus.jsonl'}", f"evaluation.sources.queries.source={DATA}"]
        out = Path(tempfile.mkdtemp()) / "run"
        tuned = mmcl.train(HERE / "configs" / "simcse_minilm.yaml", out=out, overrides=data).model
    beir = open_beir(DATA, "test")
    judged = {
        name: beir_retrieval(model, beir, (10,), self_matches="keep")
        for name, model in ((START, mmcl.load(START)), ("tuned", tuned))
    }
    before, after = ({"query_to_document": scores} for scores in judged.values())
    found = compare(before, after, METRICS)
    rows = [row(name, scores) for name, scores in judged.items()]
    sizes: dict[str, Any] = {"documents": len(beir.corpus), "queries": len(beir.queries), "torch": torch.__version__}
    report(__file__, rows, **sizes, threads=torch.get_num_threads(), comparison=found.to_dict())
    for name, difference in found.differences.items():
        print(
            f"{name}: {difference.difference:+.4f} ({difference.low:+.4f} – {difference.high:+.4f}), "
            f"p {difference.p:.4f}"
        )


def row(name: str, scores: Scores) -> dict[str, Any]:
    """A line of the table."""
    cells: dict[str, Any] = {"model": name}
    for metric in METRICS:
        low, high = scores.intervals[metric]
        cells |= {metric: scores.metrics[metric], f"{metric} interval": f"{low:.4f} – {high:.4f}"}
    return cells


if __name__ == "__main__":
    main()
