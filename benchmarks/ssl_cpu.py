"""What do ten minutes on a CPU teach from images alone, in mmcl, and in lightly's own pieces in a plain loop?

python benchmarks/ssl_cpu.py --minutes 10

One small ResNet (basic blocks 1-1-1-1 of width 32, 3×3 stem) and batches of 256 images of CIFAR-10 for all.
`lightly` and `simclr_as_lightly` are SimCLR with the optimizer, learning rate, head and augmentation of lightly's own
benchmark, whose loop has two loader workers. Then every method of mmcl has the same minutes with settings for so short
a time. mmcl's minutes start with an empty cache and hold everything, lightly's hold the loop alone. All are judged by
the same code on the 10,000 test images.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar10 import DATA, METHODS, Encode, Images, experiment, features, judge, shown
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from lightly.transforms.utils import IMAGENET_NORMALIZE
from measure import machine, show
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import mmcl
from mmcl.models.image.small_resnet import small_resnet
from mmcl.runtime.device import DTYPES, resolve_precision
from mmcl.training.build import build_method

BATCH, WIDTH = 256, 32
LR, DECAY, MOMENTUM = 0.12, 5e-4, 0.9  # lightly's own benchmark on CIFAR-10: 0.06 for 128 images
TOWER = [
    "model.dim=256",
    "model.image.name=cifar:resnet10",
    f"model.image.args={{width: {WIDTH}}}",
    f"training.batch_size={BATCH}",
]
HEAD = "method.projector={hidden: [256], dim: 128}"  # lightly's for SimCLR
SAME = "simclr_as_lightly"
COMPILED = "training.compile=true"  # starts half a minute later, which its faster steps make good
SHORT = [
    "augmentation.size=24",
    "training.optimizer=adamw",
    "training.lr=2e-3",
    "training.lr_scaling=none",
    "training.weight_decay=1e-4",
]  # chosen by SimCLR's kNN on images of train-1.parquet, which are neither learned from nor judged here
OF_METHOD = {
    "simclr": [HEAD, COMPILED, "method.temperature=0.2"],
    # Local crops and heads of thousands of units halve the epochs, and so few do not repay them.
    "swav": ["method.freeze_prototypes=20", "method.local_crops=0", "method.prototypes=256"],
    "dino": [
        "method.freeze_prototypes=20",
        "method.local_crops=0",
        "method.prototypes=512",
        "method.momentum=0.97",
        "method.projector={hidden: [512], dim: 128, norm: batch, activation: gelu}",
    ],
}
TRIAL_STEPS = 10  # of mmcl, to know its rate
log = logging.getLogger("ssl_cpu")


def small_net() -> nn.Module:
    """The tower of both sides."""
    return small_resnet("resnet10", width=WIDTH)


class Views(Dataset[list[Tensor]]):
    """Two augmentations of each image by lightly's transform, decoded once."""

    def __init__(self, images: Images) -> None:
        self.images = [_image(image) for image in images.images]
        # No blur and half the colour jitter on images of 32 pixels, as in lightly's own benchmark.
        self.transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0, min_scale=0.2)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> list[Tensor]:
        views: list[Tensor] = self.transform(self.images[row])
        return views


def _image(encoded: Any) -> Image.Image:
    image = encoded if isinstance(encoded, Image.Image) else Image.open(io.BytesIO(encoded))
    return image.convert("RGB")


class Lightly:
    """A tower with the method by which it is judged."""

    def __init__(self, tower: nn.Module) -> None:
        self.tower = tower.eval()
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(**IMAGENET_NORMALIZE)])

    @torch.inference_mode()
    def encode(self, images: Sequence[Any]) -> NDArray[np.float32]:
        """(N, 256) features."""
        parts = [images[start : start + 500] for start in range(0, len(images), 500)]
        return torch.cat([self.tower(torch.stack([self.transform(_image(i)) for i in part])) for part in parts]).numpy()


def train_lightly(images: Images, minutes: float) -> tuple[Encode, dict[str, Any]]:
    """A plain loop for the given time: the learning rate follows the clock instead of a number of steps."""
    torch.manual_seed(0)
    tower, head = small_net().train(), SimCLRProjectionHead(8 * WIDTH, 8 * WIDTH, 128)
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    loss_of = NTXentLoss(temperature=0.5)
    views = Views(images)
    loader = DataLoader(views, BATCH, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
    precision = resolve_precision("auto", torch.device("cpu"))
    budget, steps, elapsed = 60 * minutes, 0, 0.0
    start = time.perf_counter()
    while elapsed < budget:
        for first, second in loader:
            elapsed = time.perf_counter() - start
            if elapsed >= budget:
                break
            for group in optimizer.param_groups:
                group["lr"] = LR * (1 + math.cos(math.pi * elapsed / budget)) / 2
            with torch.autocast("cpu", dtype=DTYPES[precision], enabled=precision != "float32"):
                projected = [head(tower(view)) for view in (first, second)]
            loss = loss_of(*(each.float() for each in projected))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
    seconds = time.perf_counter() - start
    return Lightly(tower).encode, _facts(steps, seconds, len(views))


def _facts(steps: int, seconds: float, rows: int) -> dict[str, Any]:
    return {
        "minutes": seconds / 60,
        "epochs": steps * BATCH / rows,
        "images_per_second": steps * BATCH / seconds,
        "threads": torch.get_num_threads(),
    }


@contextmanager
def empty_cache(folder: Path) -> Iterator[None]:
    """mmcl decodes into ``folder`` rather than into the cache of this machine."""
    before = os.environ.get("MMCL_CACHE")
    os.environ["MMCL_CACHE"] = str(folder / "cache")
    try:
        yield
    finally:
        os.environ.pop("MMCL_CACHE") if before is None else os.environ.update(MMCL_CACHE=before)


def settings_of(contender: str) -> tuple[str, list[str]]:
    """The method and the changes of its config."""
    if contender == SAME:
        return "simclr", [*TOWER, HEAD, COMPILED]
    return contender, [*TOWER, *SHORT, *OF_METHOD.get(contender, [])]


def train_mmcl(
    contender: str, file: Path, rows: int, minutes: float, overrides: Sequence[str]
) -> tuple[Encode, dict[str, Any]]:
    """``mmcl train`` for as many epochs as fit: a first run of a few steps says how long one takes."""
    method, settings = settings_of(contender)
    settings += overrides
    with tempfile.TemporaryDirectory() as scratch, empty_cache(Path(scratch)):
        start = time.perf_counter()
        trial = [*settings, f"training.epochs={TRIAL_STEPS * BATCH / rows}", "training.log_every=2"]
        lines = mmcl.train(experiment(method, [file], trial), out=f"{scratch}/trial", show_progress=False).lines()
        rates = [line["pairs_per_second"] for line in lines if "pairs_per_second" in line]
        remaining = 60 * minutes - (time.perf_counter() - start)
        epochs = 0.97 * remaining * statistics.median(rates) / rows
        config = experiment(method, [file], [*settings, f"training.epochs={epochs}"])
        began = time.perf_counter()
        run = mmcl.train(config, out=f"{scratch}/run", show_progress=False)
        facts = _facts(run.card["training"]["steps"], time.perf_counter() - began, rows)
        return features(run.model), facts | {"minutes": (time.perf_counter() - start) / 60}


def untrained(file: Path) -> Any:
    """The tower before its first step."""
    with tempfile.TemporaryDirectory() as folder:
        return mmcl.Encoder(build_method(experiment("simclr", [file], TOWER), Path(folder)).encoder.eval())


def table(contenders: dict[str, Any]) -> list[dict[str, Any]]:
    """A line a contender."""
    start = contenders["untrained"]["scores"]["kNN"]["value"]
    rows = []
    for name, result in contenders.items():
        row = {"contender": name} | {metric: shown(score) for metric, score in result["scores"].items()}
        if name != "untrained":
            row["over the untrained tower"] = f"{result['scores']['kNN']['value'] - start:+.1f}"
            row |= {key: round(result[key], 1) for key in ("minutes", "epochs", "images_per_second", "threads")}
        rows.append(row)
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="a folder with train-0.parquet and test.parquet")
    parser.add_argument("--minutes", type=float, default=10.0, help="time of each contender")
    parser.add_argument(
        "--contenders", nargs="*", metavar="NAME", help=f"lightly, {SAME}, or methods of mmcl; all if absent"
    )
    parser.add_argument(
        "--judged-by", type=int, metavar="N", help="use so many rows of each file to judge; all if absent"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of mmcl's configs")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    return parser.parse_args()


def main() -> None:
    """Train, judge and print. Each result is written when it is there; contenders named alone are put beside them."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = arguments()
    file = args.data / "train-0.parquet"
    images = Images.read(file)
    bank = images if args.judged_by is None else Images.read(file, rows=args.judged_by)
    test = Images.read(args.data / "test.parquet", rows=args.judged_by)
    result = {"machine": machine(), "torch": torch.__version__, "batch": BATCH, "minutes": args.minutes}
    before = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() and args.contenders else {}
    contenders = before["contenders"] if result.items() <= before.items() else {}
    result["contenders"] = contenders
    names = args.contenders or ["lightly", SAME, "simclr", *(name for name in METHODS if name != "simclr")]
    contenders.setdefault("untrained", {"scores": judge(features(untrained(file)), bank, test)})
    for name in names:
        if name == "lightly":
            model, facts = train_lightly(images, args.minutes)
        else:
            model, facts = train_mmcl(name, file, len(images.images), args.minutes, args.set)
        contenders[name] = {**facts, "scores": judge(model, bank, test)}
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        log.info("%s: kNN %s", name, shown(contenders[name]["scores"]["kNN"]))
    show(table(contenders))
    for name in (SAME, "simclr"):
        if {"lightly", name} <= set(contenders):
            compare(name, contenders[name], contenders["lightly"])


def compare(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Print how far a contender is ahead of lightly."""
    print(f"{name}: {ours['images_per_second'] / theirs['images_per_second']:.2f} times lightly's images/s")
    for metric, score in ours["scores"].items():
        ahead = score["interval"][0] > theirs["scores"][metric]["interval"][1]
        print(f"  {metric}: {'ahead beyond the intervals' if ahead else 'the intervals meet'}")


if __name__ == "__main__":
    main()
