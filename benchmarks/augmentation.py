"""How fast are batched augmentation, of squares and of originals, and decoding for it, beside torchvision and Pillow?

python benchmarks/augmentation.py
"""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from measure import alternate, report
from PIL import Image
from torchvision.transforms import v2

from mmcl.config.data import AugmentationConfig
from mmcl.data.augment.images import Augmentation
from mmcl.data.augment.random_crop import PackedImages
from mmcl.data.batches.inputs import image_inputs
from mmcl.data.images import decode, decode_many, decode_originals

BATCHES = [(512, 64), (64, 224)]
STORED = 1.5  # shorter side of an original in that of a view, as `data.image.stored` has it by default
PHOTOGRAPH = (375, 500)
COLOUR = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}


def main() -> None:
    rows = [row for count, size in BATCHES for row in (changed(count, size, 10, False), changed(count, size, 0, True))]
    rows += [decoded(64, 224)]
    report(__file__, rows, threads=torch.get_num_threads())


def changed(count: int, size: int, rotate: float, originals: bool) -> dict[str, object]:
    """Crop, flip, rotation and colour jitter of squares of the view's size, or of landscapes and portraits of 4:3."""
    settings = AugmentationConfig(crop_scale=(0.5, 1.0), flip=0.5, rotate=rotate, **COLOUR)
    augment, seeds = Augmentation(settings, size), torch.arange(count)
    short = math.ceil(STORED * size)
    shapes = [(short, short * 4 // 3), (short * 4 // 3, short)] if originals else [(size, size)]
    images = [torch.randint(0, 256, (*shapes[n % len(shapes)], 3), dtype=torch.uint8) for n in range(count)]
    turn = [v2.RandomRotation(rotate, interpolation=v2.InterpolationMode.BILINEAR)] if rotate else []
    crop = [v2.RandomResizedCrop(size, (0.5, 1.0), antialias=originals), v2.RandomHorizontalFlip(), *turn]
    theirs = v2.Compose([*crop, v2.ToDtype(torch.float32, scale=True), v2.ColorJitter(**COLOUR)])
    single = [image.permute(2, 0, 1) for image in images]
    if originals:
        packed = PackedImages(**image_inputs([image.numpy() for image in images], size))
        ours = lambda: augment.of_originals(packed, size, seeds)  # noqa: E731
    else:
        batch = torch.stack(images)
        ours = lambda: augment(batch, seeds)  # noqa: E731
    seconds = alternate(
        {"mmcl": ours, "torchvision": lambda: torch.stack([theirs(image) for image in single])},
        rounds=5,
    )
    what = f"{count} originals of {short} × {short * 4 // 3} to {size}²" if originals else f"{count} × {size}²"
    return _row(what, "crop, flip, colour jitter" + (", rotation" if rotate else ""), seconds)


def decoded(count: int, size: int) -> dict[str, object]:
    """JPEG photographs to squares and to originals; theirs is Pillow's full decoding, one at a time."""
    files = [photograph(number) for number in range(count)]
    stored = math.ceil(STORED * size)
    seconds = alternate(
        {
            "mmcl, squares": lambda: decode_many(files, size, "crop", 1),
            "mmcl": lambda: decode_originals(files, size, "crop", stored, 1),
            "torchvision": lambda: [np.asarray(decode(file)) for file in files],
        },
        rounds=5,
    )
    height, width = PHOTOGRAPH
    row = _row(f"{count} JPEG of {height} × {width}", f"decoding for {size}², one thread", seconds)
    return row | {"squares ms": 1e3 * seconds["mmcl, squares"]}


def _row(batch: str, what: str, seconds: dict[str, float]) -> dict[str, object]:
    ours, theirs = seconds["mmcl"], seconds["torchvision"]
    return {"batch": batch, "what": what, "mmcl ms": 1e3 * ours, "torchvision ms": 1e3 * theirs, "ratio": theirs / ours}


def photograph(seed: int) -> bytes:
    """Noise of every scale, which compresses about as photographs do."""
    random, (height, width) = np.random.default_rng(seed), PHOTOGRAPH
    image = np.zeros((height, width, 3))
    for coarse in (2, 8, 32, 128):
        part = Image.fromarray(random.integers(0, 256, (coarse, coarse, 3), dtype=np.uint8))
        image += np.asarray(part.resize((width, height), Image.Resampling.BICUBIC)) / 4
    file = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


if __name__ == "__main__":
    main()
