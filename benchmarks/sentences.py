"""Sentence embeddings from raw text: `configs/simcse_from_scratch.yaml` beside the same tower untrained, and beside
TF-IDF fitted on the same sentences; and what 5,883 labelled triplets add (`configs/simcse_sup.yaml` going on from it).

Judged by Spearman's correlation × 100 on the seven STS tasks of the SimCSE paper, with 95% bootstrap intervals.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import report
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer

import mmcl
from mmcl.config import Config, load_config
from mmcl.data.sources import open_source
from mmcl.evaluation import StsScores, compare_sts, open_sts, sts
from mmcl.evaluation.tasks.sentence_pairs import SentencePairs
from mmcl.training.build import build_method

HERE = Path(__file__).parents[1]
DATA = HERE.parent / "shared" / "data"
TFIDF_SENTENCES = 100_000
SENTENCES = [
    f"data.train.source={DATA / 'wiki_sentences.parquet'}",
    f"evaluation.sources.dev.source={DATA / 'sts.parquet'}",
]
TRIPLETS = [
    "model.text=null",
    f"data.train.source={DATA / 'snli_triplets.parquet'}",
    "data.train.split=null",
    "method.temperature=0.1",
    "training.epochs=10",
    "training.batch_size=512",
    "training.lr=1e-3",
    "training.warmup=0.1",
    "training.log_every=20",
    f"evaluation.sources={{dev: {{task: sts, source: {DATA / 'sts.parquet'}, split: dev}}}}",
    "evaluation.every=1",
]


def main() -> None:
    """Train, judge, print and write ``sentences.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="keep the runs here")
    parser.add_argument("--set", action="append", default=[], help="override a setting of simcse_from_scratch")
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp())
    config = load_config(HERE / "configs" / "simcse_from_scratch.yaml", [*SENTENCES, *args.set])
    pairs = open_sts(DATA / "sts.parquet", split="test")
    texts = [text for text in open_source(DATA / "wiki_sentences.parquet").texts("text") if isinstance(text, str)]

    rows = [tfidf("TF-IDF, words", pairs, texts), tfidf("TF-IDF, characters 3-4", pairs, texts, ngrams=(3, 4))]
    started = time.monotonic()
    run = mmcl.train(config, out=out / "scratch")
    minutes = (time.monotonic() - started) / 60
    rows.append(row("untrained, tokens alike", sts(untrained(config, run.folder, alike=True), pairs)))
    rows.append(row("untrained, rare tokens count more", sts(untrained(config, run.folder), pairs)))
    learned = sts(run.model, pairs)
    rows.append(row("simcse_from_scratch", learned) | {"minutes": round(minutes, 1)})

    overrides = [f"model.name={run.folder / 'model'}", f"model.dim={config.model.dim}", *TRIPLETS]
    labelled = sts(mmcl.train(HERE / "configs" / "simcse_sup.yaml", out=out / "sup", overrides=overrides).model, pairs)
    rows.append(row("and then simcse_sup", labelled))
    compared = compare_sts(learned, labelled)
    sizes = {"sentences": len(texts), "torch": torch.__version__, "threads": torch.get_num_threads()}
    report(__file__, rows, **sizes, sup_against_scratch=compared.to_dict())
    stsb = compared.differences["STSB"]
    print(
        f"STSB: {100 * stsb.difference:+.2f} ({100 * stsb.low:.2f} – {100 * stsb.high:.2f}), p (Holm) {stsb.p_holm:.4f}"
    )


def untrained(config: Config, folder: Path, *, alike: bool = False) -> Any:
    """The run's tower as it was before its first step; with ``alike``, all tokens counting the same."""
    encoder = build_method(config, folder).encoder.eval()  # with the tokenizer that the run has trained
    if alike:
        with torch.no_grad():
            encoder.embedder("text").tower.token_weights.log_weight.zero_()
    return encoder


def tfidf(name: str, pairs: SentencePairs, texts: list[str], ngrams: tuple[int, int] | None = None) -> dict[str, Any]:
    """Words, or characters within and across words, with scikit-learn's defaults."""
    options: dict[str, Any] = {} if ngrams is None else {"analyzer": "char", "ngram_range": ngrams}
    vectorizer = TfidfVectorizer(**options).fit(texts[:TFIDF_SENTENCES])
    first, second = vectorizer.transform(pairs.first), vectorizer.transform(pairs.second)
    alike = np.asarray(first.multiply(second).sum(axis=1)).ravel()
    scores = {
        task: spearmanr(alike[pairs.task == number], pairs.score[pairs.task == number])[0]
        for number, task in enumerate(pairs.tasks)
    }
    return {"model": name} | {task: 100 * value for task, value in scores.items()} | {"average": 100 * mean(scores)}


def mean(scores: dict[str, float]) -> float:
    """Over the tasks."""
    return sum(scores.values()) / len(scores)


def row(name: str, scores: StsScores) -> dict[str, Any]:
    """A line of the table."""
    values = {task: 100 * scores.metrics[f"{task}/spearman"] for task in scores.tasks}
    low, high = scores.intervals["spearman"]
    return {"model": name, **values, "average": 100 * scores.average, "interval": f"{100 * low:.1f} – {100 * high:.1f}"}


if __name__ == "__main__":
    main()
