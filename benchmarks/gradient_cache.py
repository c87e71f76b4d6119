"""What does a batch cost that does not fit into memory at once?

python benchmarks/gradient_cache.py                                   # 2,048 pairs, and 32,768 of fashion: 4 minutes
python benchmarks/gradient_cache.py --batch 512 --micro-batch 64 128 --large 2048

Steps of `configs/clip_fashion.yaml`'s model on real pairs, after one that does not count:

- `whole`: the batch passes through the towers at once.
- `accumulated`: micro-batches, each with a loss of its own, whose gradients are averaged. As much computed as `whole`,
  but every query is compared with its own micro-batch only.
- `cached`: micro-batches under the loss of the whole batch (`training.micro_batch`). All but the last one are embedded
  twice. Where a backward pass takes as long as two forward passes, k of them cost (4 k - 1) / 3 k of `accumulated`.

Every row has processes of its own, and the most memory that one of them ever held: with the batches that are prepared
ahead, whose images take 0.4 GB for 32,768 of 64 × 64.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import report

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "clip_fashion.yaml"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "fashion"


def measure(way: str, batch: int, micro_batch: int, steps: int, source: str) -> dict[str, Any]:
    """Seconds of the steps, and the process's peak of memory in GB."""
    import torch

    from mmcl.config.load import load_config
    from mmcl.methods import Step
    from mmcl.training.loop import Trainer

    size = micro_batch if way == "accumulated" else batch
    config = load_config(
        CONFIG,
        [
            f"data.train.source={source}",
            f"training.batch_size={size}",
            f"training.accumulate={batch // size}",
            f"training.micro_batch={micro_batch if way == 'cached' else 'null'}",
            "evaluation.sources={}",
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder) / "run", resume=False, show_progress=False)
        trainer.method.train()
        torch.manual_seed(0)
        batches = trainer.feed.batches(0, 4 * config.training.accumulate)  # so that some are prepared ahead
        taken = list(itertools.islice(batches, config.training.accumulate))
        seconds, result = [], None
        for number in range(steps):
            start = time.perf_counter()
            result = trainer.step(taken, Step(number, trainer.steps), 1e-3)
            seconds.append(time.perf_counter() - start)
        batches.close()
        trainer.metrics.close()
    assert result is not None, "one step or more"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": seconds, "GB": peak, "loss": result.loss}


def apart(*arguments: object) -> dict[str, Any]:
    """:func:`measure` in a process of its own."""
    command = [sys.executable, __file__, "--one", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def compare(batch: int, micro_batch: int, rounds: int, source: str) -> list[dict[str, Any]]:
    """A row for each way, of medians over rounds in which the ways alternate; a process's first step does not count."""
    ways = ("whole", "accumulated", "cached")
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            found[way].append(apart(way, batch, micro_batch, 3, source))
    seconds = {way: statistics.median(s for run in runs for s in run["seconds"][1:]) for way, runs in found.items()}
    parts = -(-batch // micro_batch)
    return [
        {
            "way": way,
            "batch": batch,
            "micro-batch": batch if way == "whole" else micro_batch,
            "s/step": seconds[way],
            "pairs/s": batch / seconds[way],
            "× accumulated": seconds[way] / seconds["accumulated"],
            "expected": (4 * parts - 1) / (3 * parts) if way == "cached" else 1.0,
            "peak GB": max(run["GB"] for run in found[way]),
        }
        for way in ways
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2048, help="pairs of a step; a multiple of each micro-batch")
    parser.add_argument("--micro-batch", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", type=int, default=32_768, help="pairs of one cached step; 0 for none")
    parser.add_argument("--large-micro-batch", type=int, default=256)
    parser.add_argument("--source", default=str(DATA))
    parser.add_argument("--out", type=Path, default=Path(__file__))
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        way, batch, micro_batch, steps, source = args.one
        print(json.dumps(measure(way, int(batch), int(micro_batch), int(steps), source)))
        return
    rows = [row for micro in args.micro_batch for row in compare(args.batch, micro, args.rounds, args.source)]
    if args.large:
        one = apart("cached", args.large, args.large_micro_batch, 1, args.source)
        (seconds,) = one["seconds"]
        rows.append(
            {
                "way": "cached",
                "batch": args.large,
                "micro-batch": args.large_micro_batch,
                "s/step": seconds,
                "pairs/s": args.large / seconds,
                "peak GB": one["GB"],
            }
        )
    report(args.out, rows, rounds=args.rounds)


if __name__ == "__main__":
    main()
