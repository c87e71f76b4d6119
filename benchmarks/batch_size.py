"""What do larger batches give, a queue, mined negatives, masked duplicates? `configs/clip_fashion.yaml`, equal epochs.

python benchmarks/batch_size.py                              # 3 epochs a run: 40 minutes on two cores
python benchmarks/batch_size.py --epochs 11 --runs 512 512+queue

Each run sees the same pairs equally often; batches above 1,024 pass through the towers in micro-batches. A run's
learning rate is the config's times the root of its batch over the config's (for Adam, Malladi et al. 2022,
arXiv:2205.10287), up to `--max-lr`. Judged on the development rows by hit@1 and hit@10, in %, with 95% bootstrap
intervals over these rows; other seeds are not in them.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measure import report

import mmcl
from mmcl.config.load import load_config
from mmcl.data.sources import open_source
from mmcl.evaluation.rows import retrieval_of_rows
from mmcl.methods import Batch, Views
from mmcl.methods.clip import Clip

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "clip_fashion.yaml"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "fashion"
RUNS = ("256", "512", "1024", "4096", "16384", "512+queue", "512+momentum", "512+mined", "512+repeats")
ADDED = {
    "queue": ["method.queue={size: 4096, start: 100}"],
    "momentum": ["method.queue={size: 4096, momentum: 0.99}"],
    "mined": ["data.mining={start: 100, every: 100, count: 1, depth: 100, choice: random, relative_margin: 0.05}"],
    "repeats": [],
}
METRICS = ("hit@1", "hit@10")


def main() -> None:
    """Train, judge, print and write ``batch_size.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=RUNS, help="batch size, and what is added")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--max-lr", type=float, default=6e-3)
    parser.add_argument("--set", action="append", default=[], help="override a setting of all runs")
    parser.add_argument("--out", type=Path, default=Path(__file__), help="the JSON is written beside this")
    args = parser.parse_args()
    rows = []
    for name in args.runs:
        rows.append(trained(name, args.epochs, args.max_lr, args.set))
        print(rows[-1], flush=True)
    report(args.out, rows, epochs=args.epochs, torch=torch.__version__, threads=torch.get_num_threads())


def trained(name: str, epochs: float, max_lr: float, overrides: list[str]) -> dict[str, Any]:
    """A line of the table: what the run's model finds."""
    size, _, added = name.partition("+")
    batch, config = int(size), load_config(CONFIG)
    rate = min(max_lr, config.training.lr * math.sqrt(batch / config.training.batch_size))
    settings = [
        f"data.train.source={DATA}",
        "evaluation.sources={}",
        f"training.batch_size={batch}",
        f"training.micro_batch={512 if batch > 1024 else 'null'}",
        f"training.lr={rate}",
        f"training.epochs={epochs}",
        *(ADDED[added] if added else []),
        *overrides,
    ]
    embed = repeats_as_negatives if added == "repeats" else Clip.embed
    with tempfile.TemporaryDirectory() as folder, patch.object(Clip, "embed", embed):
        start = time.perf_counter()
        run = mmcl.train(load_config(CONFIG, settings), out=Path(folder) / "run")
        seconds = time.perf_counter() - start
        found = retrieval_of_rows(run.model, open_source(DATA, split="dev"), image="image", text="caption", ks=(1, 10))
        steps = run.lines()[-1]["step"]
    cells: dict[str, Any] = {"run": name, "steps": steps, "lr": rate}
    for way, scores in found.items():
        for metric in METRICS:
            low, high = scores.intervals[metric]
            cells[f"{way} {metric}"] = 100 * scores.metrics[metric]
            cells[f"{way} {metric} interval"] = f"{100 * low:.1f} – {100 * high:.1f}"
    return cells | {"minutes": seconds / 60}


EMBED = Clip.embed


def repeats_as_negatives(self: Clip, batch: Batch) -> Views:
    """The method's views, but every row is a thing of its own, whatever it shows or says."""
    views = EMBED(self, batch)
    return views | {"ids": torch.arange(views["ids"].numel()).view_as(views["ids"])}


if __name__ == "__main__":
    main()
