"""RGB images in another size: resampled with antialiasing, by Pillow as models are published with or by torch several
times as fast, and cut out of the centre."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

_STRIP_PIXELS = 2**23  # of a resized strip of which the centre is cut out; a longer strip is cut before
_NAMES = {Image.Resampling.BICUBIC: "bicubic", Image.Resampling.BILINEAR: "bilinear"}  # that torch has as Pillow has


def resampled(
    image: Image.Image, size: tuple[int, int], filter: Image.Resampling, *, exact: bool = True
) -> Image.Image:
    """An RGB image in another size.

    Args:
        image: of any size.
        size: width and height.
        filter: of the resampling.
        exact: as Pillow does it, which works in whole numbers of 22 bits. If not, torch does it, which has 16 bits:
            about one in three hundred levels is another, by one or two of 255.
    """
    if exact or filter not in _NAMES or size == image.size or not _fast():
        return image.resize(size, filter)
    levels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # a view whose last dimension are the colours
    found = torch.nn.functional.interpolate(levels, size[::-1], mode=_NAMES[filter], antialias=True)
    return Image.fromarray(found[0].permute(1, 2, 0).contiguous().numpy())


def shorter_side_to(
    image: Image.Image, side: int, filter: Image.Resampling, longest: int = _STRIP_PIXELS, *, exact: bool = True
) -> Image.Image:
    """``image`` with its shorter side of ``side`` pixels; of one that would be longer than ``longest``, or very long,
    the centre alone."""
    shorter, longest = min(image.size), max(side, min(longest, _STRIP_PIXELS // side))
    if max(image.size) * side > longest * shorter:
        width, height = (min(length, longest * shorter // side) for length in image.size)
        image = centre_crop(image, width, height)
    width, height = (length * side // shorter for length in image.size)
    return resampled(image, (width, height), filter, exact=exact)


def centre_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """What stands around the centre of an image, whose corner is rounded half to even."""
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def floor_crop(image: Image.Image, size: int) -> Image.Image:
    """A square around the centre of an image, whose corner is rounded down."""
    left, top = ((length - size) // 2 for length in image.size)
    return image.crop((left, top, left + size, top + size))


def _fast() -> bool:
    """Whether torch has instructions of the CPU for it; without them it is the slower one."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX")
