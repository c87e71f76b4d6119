"""How many images a second become the two views of SimCLR, beside torchvision, lightly, kornia and albumentationsx?

pip install lightly kornia albumentationsx
python benchmarks/augmentation.py

Ours is a training's own path, from rows through batches to views. Theirs run as their users run them: a data set
that changes one image at a time, in two workers of a DataLoader; kornia changes the batches that such workers give.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import albumentations
import cv2
import kornia.augmentation as kornia
import numpy as np
import torch
from lightly.transforms import SimCLRTransform
from measure import alternate, report
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from mmcl.config import load_config
from mmcl.data.batches.feed import open_feed
from mmcl.training.build import build_method

WORKERS = 2
BATCHES = {32: 256, 224: 32}
PHOTOGRAPH, STORED = (375, 500), (336, 448)  # a file, and what our cache keeps of it for views of 224: their arrays
SCALE, STRENGTHS, JITTERED, GREY, SIGMAS = (0.08, 1.0), (0.8, 0.8, 0.8, 0.2), 0.8, 0.2, (0.1, 2.0)
BLURRED = {32: 0.0, 224: 0.5}  # SimCLR blurs no images of CIFAR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=4096, help="images of 32 pixels in an epoch")
    parser.add_argument("--large", type=int, default=256, help="photographs in an epoch")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(WORKERS)
    rows = []
    for size, count in ((32, options.small), (224, options.large)):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MMCL_CACHE"] = str(Path(folder) / "cache")
            rows += compare(size, count, Path(folder), options.rounds)
    report(__file__, rows, threads=WORKERS, workers=WORKERS, rounds=options.rounds)


def compare(size: int, count: int, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """A row for decoded arrays and one for files, which ours decodes in its first epoch alone."""
    files = [write(number, size, folder) for number in range(count)]
    start = time.perf_counter()
    epoch = ours(files, size, folder)
    epoch()
    first = time.perf_counter() - start
    rows = []
    for source in ("arrays", "files"):
        images = files if source == "files" else [array(file, size) for file in files]
        others = {name: theirs(change, images, size) for name, change in transforms(size).items()}
        seconds = alternate({"mmcl": epoch, **others, "kornia": with_kornia(images, size)}, rounds)
        rates = {name: count / spent for name, spent in seconds.items()}
        best = max(rate for name, rate in rates.items() if name != "mmcl")
        row = {"two views of": f"{size}²", "from": source, **rates, "mmcl / best": rates["mmcl"] / best}
        rows.append(row | ({"mmcl, first epoch": count / first} if source == "files" else {}))
    return rows


def ours(files: list[Path], size: int, folder: Path) -> Callable[[], None]:
    """An epoch over a table of files."""
    table = folder / "rows.jsonl"
    table.write_text("".join(json.dumps({"image": str(file)}) + "\n" for file in files))
    jitter = dict(zip(("brightness", "contrast", "saturation", "hue"), STRENGTHS, strict=True))
    blur = {"blur": BLURRED[size], "blur_sigma": SIGMAS}
    tower = {"name": "timm:resnet10t", "args": {"channels": [4] * 4, "stem_width": 4}}
    config = load_config(
        {
            "method": {"name": "simclr"},
            "data": {"train": {"source": str(table)}, "image": {"size": size}},
            "model": {"dim": 8, "image": tower},
            "augmentation": {
                "crop_scale": SCALE, "flip": 0.5, **jitter, "jitter_prob": JITTERED, "greyscale": GREY, **blur
            },
            "training": {"batch_size": BATCHES[size]},
        }
    )  # fmt: skip
    method = build_method(config, folder).train()
    feed = open_feed([config.data.train], method.reading, config, None, augmented=True, device=torch.device("cpu"))

    def epoch() -> None:
        for batch in feed.batches(0, len(feed)):
            method.view_inputs(batch)

    return epoch


def transforms(size: int) -> dict[str, Callable[[Image.Image], Any]]:
    """Both views of one image, by each library that changes images one at a time."""
    blurs = BLURRED[size] > 0
    one = v2.Compose(
        [
            v2.RandomResizedCrop(size, SCALE),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*STRENGTHS)], JITTERED),
            v2.RandomGrayscale(GREY),
            *([v2.RandomApply([v2.GaussianBlur(23, SIGMAS)], BLURRED[size])] if blurs else []),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    around = [(max(0.0, 1 - strength), 1 + strength) for strength in STRENGTHS[:3]]
    other = albumentations.Compose(
        [
            albumentations.RandomResizedCrop((size, size), scale=SCALE),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.ColorJitter(*around, (-STRENGTHS[3], STRENGTHS[3]), p=JITTERED),
            albumentations.ToGray(p=GREY),
            *([albumentations.GaussianBlur((23, 23), SIGMAS, p=BLURRED[size])] if blurs else []),
            albumentations.ToFloat(max_value=255),
            albumentations.ToTensorV2(),
        ]
    )
    return {
        "torchvision": lambda image: (one(image), one(image)),
        "lightly": SimCLRTransform(
            size, min_scale=SCALE[0], gaussian_blur=BLURRED[size], sigmas=SIGMAS, normalize=None
        ),
        "albumentationsx": lambda image: [other(image=pixels)["image"] for pixels in [np.asarray(image)] * 2],
    }


class Images(Dataset):
    """Arrays or files, changed one at a time."""

    def __init__(self, images: list[Any], change: Callable[[Image.Image], Any]) -> None:
        self.images, self.change = images, change

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Any:
        image = self.images[number]
        return self.change(
            Image.fromarray(image) if isinstance(image, np.ndarray) else Image.open(image).convert("RGB")
        )


def theirs(change: Callable[[Image.Image], Any], images: list[Any], size: int) -> Callable[[], None]:
    """An epoch of changed images."""
    batches = loader(change, images, size)

    def epoch() -> None:
        for _ in batches:
            pass

    return epoch


def with_kornia(images: list[Any], size: int) -> Callable[[], None]:
    """An epoch of images that are changed as batches."""
    blur = BLURRED[size]
    change = kornia.AugmentationSequential(
        kornia.RandomResizedCrop((size, size), scale=SCALE),
        kornia.RandomHorizontalFlip(),
        kornia.ColorJitter(*STRENGTHS, p=JITTERED),
        kornia.RandomGrayscale(p=GREY),
        *([kornia.RandomGaussianBlur((23, 23), SIGMAS, p=blur)] if blur else []),
    )
    batches = loader(as_tensor, images, size)

    def epoch() -> None:
        for batch in batches:
            for _ in range(2):
                change(batch / 255)

    return epoch


def as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def loader(change: Callable[[Image.Image], Any], images: list[Any], size: int) -> DataLoader:
    """Batches by workers that stay from one epoch to the next."""

    def start(worker: int) -> None:
        cv2.setNumThreads(0)

    data = Images(images, change)
    return DataLoader(data, BATCHES[size], True, num_workers=WORKERS, persistent_workers=True, worker_init_fn=start)


def write(number: int, size: int, folder: Path) -> Path:
    """A PNG of 32 pixels or a JPEG photograph: noise of every scale, which compresses about as photographs do."""
    random, (height, width) = np.random.default_rng(number), (size, size) if size == 32 else PHOTOGRAPH
    image = np.zeros((height, width, 3))
    for coarse in (2, 8, 32, 128):
        part = Image.fromarray(random.integers(0, 256, (coarse, coarse, 3), dtype=np.uint8))
        image += np.asarray(part.resize((width, height), Image.Resampling.BICUBIC)) / 4
    kind = "PNG" if size == 32 else "JPEG"
    file = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(file, kind, quality=90)
    path = folder / f"{number}.{kind.lower()}"
    path.write_bytes(file.getvalue())
    return path


def array(file: Path, size: int) -> np.ndarray:
    image = Image.open(file)
    return np.asarray(image if size == 32 else image.resize(STORED[::-1]))


if __name__ == "__main__":
    main()
