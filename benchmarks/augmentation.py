"""How fast is batched augmentation beside torchvision's transforms, one image at a time?

python benchmarks/augmentation.py
"""

from __future__ import annotations

import torch
from measure import alternate, report
from torchvision.transforms import v2

from mmcl.config.data import AugmentationConfig
from mmcl.data.augment.images import Augmentation

BATCHES = [(512, 64), (64, 224)]


def main() -> None:
    rows = []
    for count, size in BATCHES:
        images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8)
        seeds = torch.arange(count)
        colour = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
        settings = AugmentationConfig(crop_scale=(0.5, 1.0), flip=0.5, rotate=10, **colour)
        ours = Augmentation(settings, size)
        theirs = v2.Compose(
            [
                v2.ToDtype(torch.float32, scale=True),
                v2.RandomResizedCrop(size, (0.5, 1.0), antialias=False),
                v2.RandomHorizontalFlip(),
                v2.RandomRotation(10, interpolation=v2.InterpolationMode.BILINEAR),
                v2.ColorJitter(**colour),
            ]
        )
        single = images.permute(0, 3, 1, 2).contiguous()
        seconds = alternate(
            {
                "mmcl": lambda ours=ours, images=images, seeds=seeds: ours(images, seeds),
                "torchvision": lambda theirs=theirs, single=single: torch.stack([theirs(image) for image in single]),
            },
            rounds=5,
        )
        rows.append(
            {
                "batch": f"{count} × {size}²",
                "mmcl ms": 1e3 * seconds["mmcl"],
                "torchvision ms": 1e3 * seconds["torchvision"],
                "ratio": seconds["torchvision"] / seconds["mmcl"],
            }
        )
    report(__file__, rows, changes="crop, flip, rotation, colour jitter", threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
