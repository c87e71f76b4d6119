"""What do larger batches give, a queue, mined negatives, masked duplicates, other temperatures? With equal epochs.

python benchmarks/batch_size.py                              # both: an hour and a half on two cores
python benchmarks/batch_size.py --data fashion --epochs 11 --runs 512 512+queue

- `fashion`: images and captions, `configs/clip_fashion.yaml`; judged on the development rows by hit@1, hit@10 in %.
- `wiki_sentences`: 50,000 sentences and `configs/simcse_from_scratch.yaml`, but with a small transformer, whose pairs
  are a sentence twice, each time without some of its tokens. Judged on the development pairs of STS-B and SICK-R by
  Spearman's correlation × 100. No sentence comes twice, so there are no repeats to be masked; and nothing is mined,
  which takes pairs of two different texts.

Each run sees the same rows equally often; batches above 1,024 pass through the towers in micro-batches. A run's
learning rate is that at 512 times the root of its batch over 512 (for Adam, Malladi et al. 2022, arXiv:2205.10287), up
to `--max-lr` times that; a running average of the weights reaches over equally many rows (Busbridge et al. 2023,
arXiv:2307.13813). Each kind of data has a JSON of its own. Intervals are 95% bootstrap ones over what is judged, and
since all runs answer the same questions, those of the differences from the batch of 512 tell more than their own.
`--seeds` repeats all runs.
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq
import torch
from measure import report

import mmcl
from mmcl.config.load import load_config
from mmcl.data.batches.batch import Batch
from mmcl.data.sources import open_source
from mmcl.encoding.encoder import Encoder
from mmcl.evaluation import compare, compare_sts, open_sts, sts
from mmcl.evaluation.compare import Comparison
from mmcl.evaluation.tasks.rows import retrieval_of_rows
from mmcl.methods import Rows
from mmcl.methods.image_text.clip import Clip

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SIZES = ("untrained", "256", "512", "1024", "4096", "16384")
REFERENCE = "512"

Cells = dict[str, tuple[float, float, float]]
"""Value, low and high of each metric, in %."""


@dataclass(frozen=True)
class Setup:
    """What is trained, and how it is judged."""

    config: str
    settings: tuple[str, ...]
    """Overrides of the config."""
    table: Path
    rows: int | None
    """Of the table, the first so many are learned from."""
    epochs: float
    lr: float
    """At a batch of 512."""
    runs: tuple[str, ...]
    start: int
    """Steps after which a queue fills and negatives are mined, and again so many until they are mined anew."""
    judge: Callable[[Encoder], tuple[Any, Cells]]
    """Scores, and what of them is reported."""
    compare: Callable[[Any, Any], Comparison]
    """Two runs' scores; what is different about the second."""
    metrics: dict[str, str]
    """Each metric's name in the comparison."""


def fashion(model: Encoder) -> tuple[Any, Cells]:
    """Captions found for images and images for captions, within the development rows."""
    dev = open_source(DATA / "fashion", split="dev")
    found = retrieval_of_rows(model, dev, image="image", text="caption", ks=(1, 10))
    metrics = [(way, scores, name) for way, scores in found.items() for name in FASHION_METRICS]
    return found, {
        f"{way} {name}": in_percent(scores.metrics[name], scores.intervals[name]) for way, scores, name in metrics
    }


def sentences(model: Encoder) -> tuple[Any, Cells]:
    """Agreement with people about how alike two sentences are."""
    scores = sts(model, open_sts(DATA / "sts.parquet", split="dev"))
    return scores, {"spearman": in_percent(scores.average, scores.intervals["spearman"])}


FASHION_METRICS = ("hit@1", "hit@10")


def in_percent(value: float, interval: tuple[float, float]) -> tuple[float, float, float]:
    return 100 * value, 100 * interval[0], 100 * interval[1]


SETUPS = {
    "fashion": Setup(
        config="clip_fashion",
        settings=(),
        table=DATA / "fashion",
        rows=None,
        epochs=2.0,
        lr=3e-3,
        runs=(
            *SIZES,
            *("512+queue", "512+momentum", "512+mined", "512+repeats"),
            *("512+temperature=0.02", "512+temperature=0.05", "512+temperature=0.1", "512+temperature=0.2"),
        ),
        start=50,
        judge=fashion,
        compare=partial(compare, metrics=FASHION_METRICS),
        metrics={
            f"{way} {name}": f"{way}/{name}" for way in ("image_to_text", "text_to_image") for name in FASHION_METRICS
        },
    ),
    "wiki_sentences": Setup(
        config="simcse_from_scratch",
        settings=(
            "model={dim: 256, text: {name: scratch, layers: 1, width: 256, heads: 4, dropout: 0.0, max_tokens: 64, "
            "tokenizer: {vocab_size: 4000}, head: {kind: none}}}",
            "method={name: simcse, temperature: 0.05, symmetric: true}",
            "text_augmentation.drop=0.2",
            "training.weight_decay=0.01",
        ),
        table=DATA / "wiki_sentences.parquet",
        rows=50_000,  # each mining compares all with all
        epochs=1.0,
        lr=1e-3,
        runs=(
            *(*SIZES, "512+queue", "512+momentum"),
            *("512+temperature=0.01", "512+temperature=0.02", "512+temperature=0.1", "512+temperature=0.2"),
        ),
        start=32,
        judge=sentences,
        compare=compare_sts,
        metrics={"spearman": "average"},
    ),
}
ADDED = {
    "": "",
    "queue": "method.queue={{size: 4096, start: {start}}}",
    "momentum": "method.queue={{size: 4096, momentum: 0.99}}",
    "mined": "data.mining={{start: {start}, every: {start}, depth: 100, choice: random, relative_margin: 0.05}}",
    "repeats": "",
    "temperature": "method.learn_temperature=false\nmethod.temperature={value}",
}


def main() -> None:
    """Train, judge, print and write ``batch_size_DATA.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=SETUPS, default=list(SETUPS))
    parser.add_argument(
        "--runs", nargs="+", help="'untrained', or batch size and what is added: 512+queue, 512+temperature=0.1"
    )
    parser.add_argument("--epochs", type=float, help="rather than the setup's own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--max-lr", type=float, default=2.0, help="times that of a batch of 512")
    parser.add_argument("--set", action="append", default=[], help="override a setting of all runs")
    parser.add_argument("--out", type=Path, default=Path(__file__), help="the JSONs are written beside this")
    args = parser.parse_args()
    for data in args.data:
        setup, done = SETUPS[data], []
        for name, seed in itertools.product(args.runs or setup.runs, args.seeds):
            settings = [f"seed={seed}", f"training.epochs={args.epochs or setup.epochs}", *args.set]
            row, scores = trained(setup, name, args.max_lr, settings)
            done.append((row | {"seed": seed}, scores))
            out = args.out.with_name(f"{args.out.stem}_{data}")
            report(out, beside_reference(setup, done), torch=torch.__version__, threads=torch.get_num_threads())


def beside_reference(setup: Setup, done: list[tuple[dict[str, Any], Any]]) -> list[dict[str, Any]]:
    """The rows, with what each has more than the first of the reference, in percentage points."""
    reference = next((scores for row, scores in done if row["run"] == REFERENCE), None)
    rows = []
    for row, scores in done:
        cells = dict(row)
        if reference is not None and scores is not reference:
            found = setup.compare(reference, scores).differences
            for metric, name in setup.metrics.items():
                value, low, high = (100 * x for x in (found[name].difference, found[name].low, found[name].high))
                cells[f"{metric} more than {REFERENCE}"] = f"{value:+.1f} ({low:+.1f} – {high:+.1f})"
        rows.append(cells)
    return rows


def trained(setup: Setup, name: str, max_lr: float, overrides: list[str]) -> tuple[dict[str, Any], Any]:
    """A line of the table, what the run's model is worth; and its scores."""
    size, _, added = name.partition("+")
    added, _, value = added.partition("=")
    batch = 512 if size == "untrained" else int(size)
    rate = setup.lr * min(max_lr, math.sqrt(batch / 512))
    config = CONFIGS / f"{setup.config}.yaml"
    decay = load_config(config).training.average
    settings = [
        *setup.settings,
        "evaluation.sources={}",
        "evaluation.best=null",
        f"training.batch_size={batch}",
        f"training.micro_batch={512 if batch > 1024 else 'null'}",
        f"training.lr={rate}",
        *([f"training.average={decay ** (batch / 512)}"] if decay else []),
        *ADDED[added].format(start=setup.start, value=value).splitlines(),
        *overrides,
        *(["training.epochs=1e-9", "training.lr=1e-12"] if size == "untrained" else []),  # a step that changes nothing
    ]
    rows = repeats_as_negatives if added == "repeats" else Clip._rows
    with tempfile.TemporaryDirectory() as folder, patch.object(Clip, "_rows", rows):
        settings.append(f"data.train.source={first_rows(setup, Path(folder))}")
        start = time.perf_counter()
        run = mmcl.train(load_config(config, settings), out=Path(folder) / "run")
        seconds = time.perf_counter() - start
        scores, found = setup.judge(run.model)
        steps = run.lines()[-1]["step"]
    cells: dict[str, Any] = {"run": name, "steps": steps, "lr": rate}
    for metric, (value, low, high) in found.items():
        cells |= {metric: value, f"{metric} interval": f"{low:.1f} – {high:.1f}"}
    return cells | {"minutes": seconds / 60}, scores


def first_rows(setup: Setup, folder: Path) -> Path:
    """The table, or one in ``folder`` of its first rows."""
    if setup.rows is None:
        return setup.table
    pq.write_table(pq.read_table(setup.table).slice(0, setup.rows), folder / "rows.parquet")
    return folder / "rows.parquet"


ROWS = Clip._rows


def repeats_as_negatives(self: Clip, batch: Batch) -> Rows:
    """What is known of the rows, but every row is a thing of its own, whatever it shows or says."""
    rows = ROWS(self, batch)
    return replace(rows, ids=torch.arange(rows.ids.numel()).view_as(rows.ids))


if __name__ == "__main__":
    main()
