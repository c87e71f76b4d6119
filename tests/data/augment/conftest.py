"""Images to change, and torchvision's changes by the parameters that ours drew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from mmcl.data.augment.parameters import NEUTRAL, Parameters
from mmcl.data.augment.random_crop import PackedImages


@pytest.fixture
def noise():
    """Uniform levels: uint8 (n, H, W, 3)."""

    def noise(count: int, height: int = 32, width: int | None = None) -> Tensor:
        random = torch.Generator().manual_seed(count + height)
        return torch.randint(0, 256, (count, height, width or height, 3), dtype=torch.uint8, generator=random)

    return noise


@pytest.fixture
def smooth():
    """Images without hard edges: uint8 (n, H, W, 3)."""

    def smooth(count: int = 6, height: int = 48, width: int = 48) -> Tensor:
        y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
        phase = torch.arange(count)[:, None, None, None] + torch.tensor([0.0, 1.0, 2.5])
        wave = torch.sin(3 * x[..., None] + phase) * torch.cos(4 * y[..., None] - 2 * phase)
        return (127 + 80 * wave + 40 * x[..., None]).to(torch.uint8)

    return smooth


@pytest.fixture
def pack():
    """Images of different sizes, (H, W, 3) each."""

    def pack(images: list[Tensor]) -> PackedImages:
        sizes = torch.tensor([image.shape[:2] for image in images])
        return PackedImages(sizes, torch.cat([image.reshape(-1, 3) for image in images]))

    return pack


@pytest.fixture
def torchvisions():
    """One image (H, W, 3) changed by torchvision's functions as one sample of ours: float (3, S, S)."""

    def change(image: Tensor, of: Parameters, size: int, fill: float = 1.0) -> Tensor:
        (box,), view = of.boxes.round().astype(int).tolist(), image.permute(2, 0, 1) / 255
        view = reference.resized_crop(view, *box, [size, size], antialias=True)
        if of.flips[0, 1]:
            view = reference.horizontal_flip(view)
        if of.flips[0, 0]:
            view = reference.vertical_flip(view)
        if of.angles[0]:
            view = reference.rotate(view, float(of.angles[0]), v2.InterpolationMode.BILINEAR, fill=[fill] * 3)
        for number in of.orders[0]:
            name = ("brightness", "contrast", "saturation", "hue")[number]
            if of.factors[0, number] != NEUTRAL[number]:
                view = getattr(reference, f"adjust_{name}")(view, float(of.factors[0, number]))
        if of.grey[0]:
            view = reference.rgb_to_grayscale(view, 3)
        if of.sigmas[0]:
            view = reference.gaussian_blur(view, [23, 23], [float(of.sigmas[0])] * 2)
        return reference.solarize(view, 0.5) if of.solarised[0] else view

    return change
