"""The quickstart: all three jobs on real sample data, by the public functions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmcl.config import Config, load_config
from mmcl.data import samples
from mmcl.data.rows import Rows
from mmcl.data.sources import open_source
from mmcl.encoding import Columns, Encoder, Vectors, encode_source
from mmcl.evaluation import Scores, retrieval_pairs
from mmcl.evaluation.tasks.embed_rows import PairVectors
from mmcl.evaluation.tasks.retrieval_judged import images_of, mistakes_of
from mmcl.reports import Hit, Search, write_report
from mmcl.retrieval import Index, Searcher
from mmcl.training import Run, train

log = logging.getLogger("mmcl")

HITS = 8
QUERIES = {
    "emoji": ("a happy face", "wild animal", "fruit", "a vehicle with wheels", "bad weather"),
    "shapes": (
        "a small red circle",
        "a large blue square",
        "a green triangle left of a red circle",
        "a small yellow star",
        "a blue circle above a green square",
    ),
}
SPLITS = {"test": "concepts seen", "test_unseen": "concepts not seen"}
"""The held-out images, by whether training showed what they show (in other images) or not."""


@dataclass(frozen=True)
class Quickstart:
    """What the quickstart made and measured."""

    sample: str
    run: Run
    scores: Mapping[str, Mapping[str, Scores]]
    searches: list[Search]
    index: Path
    report: Path

    @property
    def training_seconds(self) -> float:
        """Seconds spent in the training loop, evaluations during training included."""
        return float(self.run.card["training"]["seconds"])

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: ``scores[split][direction]["metrics"]["hit@1"]`` and so on."""
        return {
            "sample": self.sample,
            "training_seconds": self.training_seconds,
            "scores": {
                split: {way: judged.to_dict() for way, judged in ways.items()} for split, ways in self.scores.items()
            },
            "report": str(self.report),
        }


def quickstart(out: Path) -> Quickstart:
    """Train on the sample ``emoji``, encode, index, evaluate and search held-out images, and write a report.

    Where the package index cannot be reached and the sample was never fetched, ``shapes`` stands in, which is said.
    An interrupted quickstart goes on where it stopped.

    Args:
        out: gets ``run/``, ``vectors/``, ``index/`` and ``report.html``.
    """
    sample = _sample()
    try:
        run = train(_config(sample), out=out / "run", resume=(out / "run" / "config.yaml").is_file())
    except KeyboardInterrupt as interrupted:  # which speaks of an option of `mmcl train`
        where = str(interrupted).partition(";")[0]
        raise KeyboardInterrupt(f"{where}; start the quickstart again, and it goes on from there") from None
    encoder = run.model

    rows, vectors, scores = {}, {}, {}
    for split in SPLITS:
        rows[split] = open_source(f"sample:{sample}", split=split)
        vectors[split] = encode_source(encoder, rows[split], Columns("image", labels="text"), out / "vectors" / split)
        texts = encoder.encode(rows[split].texts("text"), show_progress=False)
        scores[split] = retrieval_pairs(vectors[split].take(range(len(vectors[split]))), texts)
        log.info("%s: %s", SPLITS[split], _headline(scores[split]))

    first, *others = vectors.values()
    index = Index.build(first)
    for part in others:
        index.add(part)
    index.save(out / "index")

    images, searcher = _images(rows), Searcher(index, encoder)
    searches = [_search(query, searcher, images) for query in QUERIES[sample]]
    report = write_report(
        out / "report.html",
        run,
        title="mmcl quickstart",
        scores={SPLITS[split]: ways for split, ways in scores.items()},
        searches=searches,
        mistakes=mistakes_of(_pairs(encoder, rows["test"], vectors["test"]), images_of(rows["test"], "image")),
    )
    return Quickstart(sample, run, scores, searches, out / "index", report)


def _sample() -> str:
    try:
        samples.get("minilm")
        samples.get("emoji")
        return "emoji"
    except samples.UnreachableError as error:
        log.warning("%s; going on with the drawn sample 'shapes', which needs no network", error)
        return "shapes"


def _config(sample: str) -> Config:
    package = Path(__file__).parent
    installed, in_checkout = package / "configs", package.parent / "configs"
    return load_config((installed if installed.is_dir() else in_checkout) / f"clip_{sample}.yaml")


def _headline(ways: Mapping[str, Scores]) -> str:
    parts = [
        f"{way} hit@1 {judged.metrics['hit@1']:.3f} hit@10 {judged.metrics['hit@10']:.3f}"
        for way, judged in ways.items()
    ]
    return ", ".join(parts)


def _images(rows: Mapping[str, Rows]) -> dict[str, bytes]:
    """Encoded image of each id."""
    found: dict[str, bytes] = {}
    for part in rows.values():
        images = part.images("image", range(len(part)))
        found |= {name: image for name, image in zip(part.ids(), images, strict=True) if isinstance(image, bytes)}
    return found


def _search(query: str, searcher: Searcher, images: Mapping[str, bytes]) -> Search:
    found = searcher.search(query, HITS)
    return Search(query, [Hit(one.label or str(one.id), one.score, images.get(str(one.id)), None) for one in found])


def _pairs(encoder: Encoder, rows: Rows, vectors: Vectors) -> PairVectors:
    names, numbers = [str(text) for text in rows.texts("text")], np.arange(len(rows))
    texts = encoder.encode(names, show_progress=False)
    same = encoder.text_identities(names).tolist()
    return PairVectors(vectors.take(numbers), texts, numbers, numbers, names, same, rows.ids())
