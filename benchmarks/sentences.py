"""Sentence embeddings from raw text: `configs/simcse_from_scratch.yaml` beside the same tower untrained, its spelling
alone, and TF-IDF fitted on the same sentences; and what 5,883 labelled triplets add (`configs/simcse_sup.yaml` going on
from it).

Judged by Spearman's correlation × 100 on the seven STS tasks of the SimCSE paper, with 95% bootstrap intervals; and
compared on the same pairs, with the paired test. `--run FOLDER` judges a run of the config that has ended.
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
from mmcl.encoding import Encoder
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
    parser.add_argument("--run", type=Path, help="judge this run of the config rather than train")
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp())
    config = load_config(HERE / "configs" / "simcse_from_scratch.yaml", [*SENTENCES, *args.set])
    pairs = open_sts(DATA / "sts.parquet", split="test")
    texts = [text for text in open_source(DATA / "wiki_sentences.parquet").texts("text") if isinstance(text, str)]

    rows = [tfidf("TF-IDF, words", pairs, texts), tfidf("TF-IDF, characters 3-4", pairs, texts, ngrams=(3, 4))]
    minutes = None
    if (folder := args.run) is None:
        started = time.monotonic()
        folder = mmcl.train(config, out=out / "scratch").folder
        minutes = round((time.monotonic() - started) / 60, 1)
    scores = {
        "spelling alone": sts(untrained(config, folder, share=0.0), pairs),
        "untrained": sts(untrained(config, folder), pairs),
        "simcse_from_scratch": sts(mmcl.load(folder), pairs),
    }
    overrides = [f"model.name={folder / 'model'}", f"model.dim={config.model.dim}", *TRIPLETS]
    print({name: round(100 * of.average, 2) for name, of in scores.items()}, flush=True)
    labelled = mmcl.train(HERE / "configs" / "simcse_sup.yaml", out=out / "sup", overrides=overrides)
    scores["and then simcse_sup"] = sts(labelled.model, pairs)
    rows += [row(name, of) for name, of in scores.items()]
    learned = scores.pop("simcse_from_scratch")
    compared = {name: compare_sts(of, learned).to_dict() for name, of in scores.items()}
    sizes = {"sentences": len(texts), "torch": torch.__version__, "threads": torch.get_num_threads()}
    report(__file__, rows, **sizes, minutes=minutes, simcse_from_scratch_against=compared)
    for name, result in compared.items():
        average = result["metrics"]["average"]
        difference, low, high = (100 * average[key] for key in ("difference", "low", "high"))
        print(f"{name}: {difference:+.2f} ({low:.2f} – {high:.2f}), p (Holm) {average['p_holm']:.4f}")


def untrained(config: Config, folder: Path, share: float | None = None) -> Any:
    """The run's tower as it was before its first step; another ``share`` of the cosine may be what is to be learned."""
    towers = build_method(config, folder).encoder.eval()  # with the tokenizer that the run has trained
    if share is not None:
        towers.text().tower.net.share = share
    return Encoder(towers)


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
