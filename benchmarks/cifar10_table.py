"""All methods over images alone in lightly's setting on CIFAR-10: the public table, made by one command.

python benchmarks/cifar10_table.py --out runs/cifar10_table --seeds 3

ResNet-18 with a 3×3 stem and without max-pooling, batches of 512, 200 epochs, kNN with k = 200 and τ = 0.1 on the test
images: the configs as they are. Meant for a GPU; killed and started again it goes on where it stood. The numbers
published on lightly's benchmark page are those of each method's best epoch on the test set. Here these stand beside
those of the last epoch, and of the epoch that is best on 5,000 training images that are kept apart, which are honest.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from cifar10 import DATA, METHODS, experiment
from measure import machine, show

import mmcl

PUBLISHED = {"simclr": 84.8, "moco": 84.7, "swav": 84.2, "byol": 86.8, "barlow_twins": 81.9}
HELD_OUT = 5_000


def split(data: Path, folder: Path) -> tuple[Path, Path]:
    """The training images but those that choose the epoch, and these, as two files."""
    train, held_out = folder / "train.parquet", folder / "held_out.parquet"
    if not held_out.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        rows = pa.concat_tables([pq.read_table(data / f"train-{half}.parquet") for half in (0, 1)])
        pq.write_table(rows.slice(HELD_OUT), train)
        beside = held_out.with_suffix(".part")
        pq.write_table(rows.slice(0, HELD_OUT), beside)
        beside.rename(held_out)  # there only when both are
    return train, held_out


def train(method: str, seed: int, args: argparse.Namespace, files: tuple[Path, Path]) -> dict[str, Any]:
    """A run of the config, gone on with where it stands, and its accuracies on the test images in %."""
    learned, held_out = files
    judge = {"task": "knn"}
    sources = {
        "held_out": judge | {"source": str(held_out)},
        "test": judge | {"source": str(args.data / "test.parquet")},
    }
    evaluation = {"sources": sources, "every": 5, "best": "held_out/top@1"}
    overrides = [f"seed={seed}", f"evaluation={json.dumps(evaluation)}", *args.set]
    run = mmcl.train(experiment(method, [learned], overrides), out=args.out / f"{method}-{seed}", resume=True)
    lines = run.lines()
    judged = [line["evaluation"] for line in lines if "evaluation" in line]
    chosen = max(judged, key=lambda values: values["held_out/top@1"])
    return {
        "method": method,
        "seed": seed,
        "last": 100 * judged[-1]["test/top@1"],
        "best on held-out images": 100 * chosen["test/top@1"],
        "best on test images": 100 * max(values["test/top@1"] for values in judged),
        "minutes": run.card["training"]["seconds"] / 60,
        "images_per_second": statistics.median(
            line["pairs_per_second"] for line in lines if "pairs_per_second" in line
        ),
    }


def results(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One for each method and seed, read back where it was measured before."""
    files = split(args.data, args.out / "data")
    for seed in range(args.seeds):
        for method in args.methods:
            done = args.out / f"{method}-{seed}.json"
            if not done.is_file():
                done.write_text(json.dumps(train(method, seed, args, files)) + "\n", encoding="utf-8")
            yield json.loads(done.read_text(encoding="utf-8"))


def table(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line a method: means over the seeds, with the spread from the lowest to the highest."""
    rows = []
    for method in dict.fromkeys(result["method"] for result in measured):
        of = [result for result in measured if result["method"] == method]
        row: dict[str, Any] = {"method": method, "seeds": len(of)}
        for name in ("last", "best on held-out images", "best on test images"):
            values = [result[name] for result in of]
            row[name] = f"{statistics.fmean(values):.1f} ({min(values):.1f} – {max(values):.1f})"
        row["published, best on test images"] = PUBLISHED.get(method, "")
        for name in ("minutes", "images_per_second"):
            row[name] = round(statistics.fmean(result[name] for result in of), 1)
        rows.append(row)
    return rows


def main() -> None:
    """Train and judge what is missing, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="a folder with train-0, train-1 and test.parquet")
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the configs")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10_table"), help="folder of the runs")
    args = parser.parse_args()
    where = {"machine": machine(), "torch": torch.__version__}
    if torch.cuda.is_available():
        where["gpu"] = torch.cuda.get_device_name()
    measured: list[dict[str, Any]] = []
    for result in results(args):
        measured.append(result)
        Path(args.out / "cifar10_table.json").write_text(
            json.dumps({**where, "changes": args.set, "runs": measured}, indent=2) + "\n", encoding="utf-8"
        )
        show(table(measured))


if __name__ == "__main__":
    main()
