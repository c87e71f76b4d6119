"""What do several positives of a concept give, against one, at equal time? Emoji as several vendors drew them.

python benchmarks/positives.py                               # half an hour on two cores
python benchmarks/positives.py --minutes 1 --runs one several

- `one`: `configs/clip_emoji.yaml`, the quickstart's run: the positive of a drawing is its name. Other drawings of the
  concept have the same name, so that they are no negatives of it, but nothing brings them together.
- `several`: the same with concepts as labels, all five vendors' drawings of a concept in one batch (ragged: not every
  vendor drew all): each is a positive of the name of each. `by chance`: they are not brought together.
- `labels`: `sup_con` over the same drawings, tower and augmentation: all drawings of a concept are positives of each
  other, and no text is read.

Each run trains for as long, in as many epochs as a first half epoch says will fit. Judged by hit@1 in %, with 95%
bootstrap intervals, on vendors never seen: drawings by Twitter to their names and back, and to those by Samsung, of the
same concept (`image_to_image`), among all that the split has of each; `unseen` are concepts that no training row
shows. Differences from the first run are paired.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import report

import mmcl
from mmcl.config.load import load_config
from mmcl.data.sources import open_source
from mmcl.encoding.encoder import Encoder
from mmcl.evaluation import Scores, compare, retrieval, retrieval_pairs

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "clip_emoji.yaml"
RUNS = {
    "one": [],
    "several": ["data.columns.label=concept", "data.per_label=all"],
    "by chance": ["data.columns.label=concept"],
    "labels": [
        "method={name: sup_con, projector: {hidden: [512], dim: 128, norm: none}}",
        "data.columns={image: image, label: concept}",
        "data.per_label=all",
        "model.text=null",
    ],
}
SPLITS = {"seen": ("test", "dev"), "unseen": ("test_unseen", "dev_unseen")}  # by Twitter, and by Samsung
PROBE = 0.5  # epochs


def main() -> None:
    """Train, judge, print and write ``positives.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=7.0, help="of training, each run")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", action="append", default=[], help="override a setting of all runs")
    parser.add_argument("--out", type=Path, default=Path(__file__), help="the JSON is written beside this")
    args = parser.parse_args()
    done: list[tuple[dict[str, Any], dict[str, Scores]]] = []
    for name, seed in itertools.product(args.runs, args.seeds):
        settings = [*RUNS[name], f"seed={seed}", "evaluation.sources={}", "evaluation.best=null", *args.set]
        done.append(trained(name, seed, settings, 60 * args.minutes))
        report(args.out, beside_first(done), minutes=args.minutes, torch=torch.__version__)


def trained(name: str, seed: int, settings: list[str], budget: float) -> tuple[dict[str, Any], dict[str, Scores]]:
    """A line of the table, and the scores that it is made of."""
    with tempfile.TemporaryDirectory() as folder:

        def train(epochs: float, out: str) -> tuple[Encoder, float]:
            run = mmcl.train(load_config(CONFIG, [*settings, f"training.epochs={epochs}"]), out=Path(folder) / out)
            return run.model, run.card["training"]["seconds"]

        epochs = PROBE * budget / train(PROBE, "probe")[1]
        model, seconds = train(epochs, "run")
        scores = judged(model)
    cells: dict[str, Any] = {"run": name, "seed": seed, "epochs": epochs, "minutes": seconds / 60}
    for what, found in scores.items():
        low, high = found.intervals["hit@1"]
        cells |= {what: 100 * found.metrics["hit@1"], f"{what} interval": f"{100 * low:.1f} – {100 * high:.1f}"}
    return cells, scores


def judged(model: Encoder) -> dict[str, Scores]:
    """Of drawings by vendors that were never seen."""
    found: dict[str, Scores] = {}
    for kind, (twitter, samsung) in SPLITS.items():
        queries, corpus = (open_source("sample:emoji", split=split) for split in (twitter, samsung))
        drawings, others = (
            model.encode(rows.images("image", range(len(rows))), modality="image", show_progress=False)
            for rows in (queries, corpus)
        )
        if "text" in model.modalities:
            names = queries.texts("text")
            vectors = model.encode(names, modality="text", show_progress=False)
            pairs = retrieval_pairs(drawings, vectors, ks=(1,), ids=(None, names))
            found |= {f"{kind} {way}": scores for way, scores in pairs.items()}
        by_concept: dict[str, dict[str, int]] = {}
        for row, concept in zip(corpus.ids(), corpus.texts("concept"), strict=True):
            by_concept.setdefault(str(concept), {})[row] = 1
        ids, concepts = queries.ids(), queries.texts("concept")
        qrels = {row: by_concept[str(of)] for row, of in zip(ids, concepts, strict=True) if str(of) in by_concept}
        found[f"{kind} image_to_image"] = retrieval((ids, drawings), (corpus.ids(), others), qrels, ks=(1,))
    return found


def beside_first(done: list[tuple[dict[str, Any], dict[str, Scores]]]) -> list[dict[str, Any]]:
    """The rows, with what each has more than the first, in percentage points."""
    (first, reference), rows = done[0], []
    for cells, scores in done:
        shared = {what: of for what, of in scores.items() if what in reference and scores is not reference}
        found = compare({what: reference[what] for what in shared}, shared, metrics=("hit@1",)) if shared else None
        more = {}
        for what in shared if found is not None else ():
            value, low, high = (
                100 * x
                for x in (getattr(found.differences[f"{what}/hit@1"], at) for at in ("difference", "low", "high"))
            )
            more[f"{what} more than {first['run']}"] = f"{value:+.1f} ({low:+.1f} – {high:+.1f})"
        rows.append(cells | more)
    return rows


if __name__ == "__main__":
    main()
