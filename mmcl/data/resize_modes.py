"""How an RGB image becomes the square of a tower, an original for random crops, or a shape of whole patches."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from mmcl.data.patches import patch_grid
from mmcl.data.resample import centre_crop, floor_crop, resampled, shorter_side_to

ResizeMode: TypeAlias = str
"""``crop``, ``squash``, ``pad``, ``keep`` or ``patches-SIDE``, and variants behind dashes: see :func:`resize`."""

_ORIGINAL_ASPECT = 32  # of an original, at most. Into a longer one no crop of 5% of it fits whose ratio is 4:3 or less
_MODES = ("crop", "squash", "pad", "keep", "patches")
_FILTERS = {filter.name.lower(): filter for filter in Image.Resampling}


class _Resizing(NamedTuple):
    """A resize mode taken apart.

    Attributes:
        how: ``crop``, ``squash``, ``pad``, ``keep`` or ``patches``.
        side: what the image is resized to before the square is cut out of its centre; None for the square itself.
        filter: of the resampling.
        floor: round the corner of what is cut out down.
        patch: side of the patches that an image of any shape consists of; None for squares.
    """

    how: str
    side: int | None
    filter: Image.Resampling
    floor: bool
    patch: int | None


@lru_cache
def _resizing(mode: ResizeMode) -> _Resizing:
    how, *variants = mode.split("-")
    sides = [int(variant) for variant in variants if variant.isdecimal()]
    filters = [_FILTERS[variant] for variant in variants if variant in _FILTERS]
    floors = variants.count("floor")
    known = len(sides) + len(filters) + floors == len(variants)
    shaped = how == "patches"
    if how not in _MODES or not known or max(len(sides), len(filters), floors) > 1 or 0 in sides or shaped > len(sides):
        raise ValueError(
            f"resize mode is {', '.join(_MODES)}, with variants such as -bilinear, -floor or -256, not {mode!r}"
        )
    number = sides[0] if sides else None
    side, patch = (None, number) if shaped else (number, None)
    return _Resizing(how, side, filters[0] if filters else Image.Resampling.BICUBIC, bool(floors), patch)


def patch_side(mode: ResizeMode) -> int | None:
    """Side of the patches of a mode that keeps the shape of images; None where they become squares."""
    return _resizing(mode).patch


def decoding_target(size: int, mode: ResizeMode) -> int | None:
    """What :func:`decode` takes as ``target`` before :func:`resize` with the same arguments; None for a mode that keeps
    the pixels as they are."""
    resizing = _resizing(mode)
    return None if resizing.how == "keep" else max(size, resizing.side or size)


def resize(image: Image.Image, size: int, mode: ResizeMode = "crop", *, exact: bool = True) -> np.ndarray:
    """An RGB image as a uint8 array (``size``, ``size``, 3), resampled bicubically with antialiasing.

    ``crop`` brings the shorter side to ``size`` and cuts the centre out, as CLIP does; ``squash`` ignores the aspect
    ratio; ``pad`` brings the longer side to ``size`` and centres the image on white; ``keep`` cuts the centre out of
    the image as it is. Pretrained models ask for variants: ``crop-256`` and ``squash-256`` resize to 256 pixels before
    they cut the centre out; ``-bilinear`` and the names of Pillow's other filters resample by these; ``-floor`` rounds
    the corner of what is cut out down, as transformers does, where torchvision and OpenAI's code round half to even.
    Where an image is smaller than what is cut out of it, black surrounds it. ``exact``: see
    :func:`mmcl.data.resample.resampled`.

    ``patches-16`` keeps the aspect ratio and cuts nothing off: the image (H, W, 3) consists of patches of 16 pixels,
    and of as many as a square of ``size`` does at most, see :func:`mmcl.data.patches.patch_grid`.
    """
    how, side, filter, floor, patch = _resizing(mode)
    side = side or size
    if patch is not None:
        rows, columns = patch_grid(image.height, image.width, patch, (size // patch) ** 2)
        return np.asarray(resampled(image, (columns * patch, rows * patch), filter, exact=exact))
    if how == "pad":
        scale = size / max(image.size)
        width, height = (max(1, round(length * scale)) for length in image.size)
        square = Image.new("RGB", (size, size), (255, 255, 255))
        square.paste(
            resampled(image, (width, height), filter, exact=exact), ((size - width) // 2, (size - height) // 2)
        )
        return np.asarray(square)
    if how == "squash":
        image = resampled(image, (side, side), filter, exact=exact)
    elif how == "crop":
        image = shorter_side_to(image, side, filter, exact=exact)
    return np.asarray(floor_crop(image, size) if floor else centre_crop(image, size, size))


def original(image: Image.Image, size: int, mode: ResizeMode, stored: int) -> np.ndarray:
    """An RGB image with nothing cut off, for crops drawn at random: uint8 (H, W, 3).

    It has the geometry that ``mode`` gives it in use, before a square is cut out (see :func:`resize`): ``crop``,
    ``keep`` and ``patches`` leave the aspect ratio, ``squash`` makes it a square, and ``pad`` a square on white. A
    shorter side (for ``pad`` the longer one) of more than ``stored`` pixels is brought down to these, with
    antialiasing. One of less than ``size`` is brought up to it, as in use, but for ``keep``: so an image of ``size`` ×
    ``size`` is what :func:`resize` makes of it. Of an image that is more than 32 times as long as wide the centre alone
    is left.
    """
    how, side, filter, _, _ = _resizing(mode)
    least = side or size
    length = min(max(image.size) if how == "pad" else min(image.size), max(stored, least))
    length = length if how == "keep" else max(length, least)
    if how == "pad":
        return resize(image, length, mode)
    if how == "squash":
        return np.asarray(image.resize((length, length), filter))
    return np.asarray(shorter_side_to(image, length, filter, _ORIGINAL_ASPECT * max(length, size)))
