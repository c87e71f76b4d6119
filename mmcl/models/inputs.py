"""What ``encode`` is given: inputs of every kind, and what is wanted of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmcl.data.images import PreparedImage, decode_many
from mmcl.models.image_tower import ImageTower
from mmcl.runtime.errors import MmclError


class Options(NamedTuple):
    """What is wanted of every input.

    Attributes:
        batch_size: inputs a forward pass; None fills text batches up to a number of tokens.
        normalize: give every vector unit length.
        dim: keep the first so many dimensions.
        prompt: as for ``TextTower.words``.
        compute: ``float32`` or ``bfloat16``, see ``Encoder.set_compute``.
    """

    batch_size: int | None
    normalize: bool
    dim: int
    prompt: str | None
    compute: str


def listed(inputs: Any) -> tuple[list[Any], bool]:
    """The inputs as a list, and whether it was a single one.

    Raises:
        MmclError: it is neither an input nor a collection of them.
    """
    picture = isinstance(inputs, np.ndarray) and inputs.dtype == np.uint8 and inputs.ndim in (2, 3)
    if picture or isinstance(inputs, (str, bytes, Path, Image.Image, PreparedImage)):
        return [inputs], True
    if isinstance(inputs, dict) or not isinstance(inputs, Iterable):
        raise MmclError(f"encode: got a {type(inputs).__name__}; give a text, an image or a list of them")
    return list(inputs), False


def modality_of(item: Any, position: int, wanted: str | None) -> str:
    """``image`` or ``text``, by the type of an input or as ``wanted``.

    Raises:
        MmclError: it is neither, or not what is wanted.
    """
    if wanted not in (None, "image", "text"):
        raise MmclError(f"encode: modality '{wanted}' is not known; use image or text")
    if isinstance(item, str):
        return wanted or "text"
    if isinstance(item, (bytes, Path, Image.Image, np.ndarray, PreparedImage)) and wanted != "text":
        return "image"
    if item is None:
        raise MmclError(f"encode: input {position} is None; leave it out, or give '' to have a vector in its place")
    kind = type(item).__name__
    raise MmclError(f"encode: input {position} is a {kind}; text is a str, an image a Path, PIL image, array or bytes")


def is_whole(value: object) -> bool:
    """Whether it is a whole number, which ``True`` is not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def first_of_equals(items: Sequence[Any]) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Where each distinct item first stands; where the repeated ones stand, and where the first of each of these.

    Only texts and paths are compared; other things are taken as distinct.
    """
    firsts: dict[Hashable, int] = {}
    repeated, originals = [], []
    for place, item in enumerate(items):
        first = firsts.setdefault(item if isinstance(item, (str, Path)) else place, place)
        if first != place:
            repeated.append(place)
            originals.append(first)
    return list(firsts.values()), np.array(repeated, dtype=np.int64), np.array(originals, dtype=np.int64)


def read_pictures(images: Sequence[Any], tower: ImageTower, start: int) -> np.ndarray:
    """(n, side, side, 3) uint8 pixels as ``tower`` takes them; ``start`` is the number of the first, for messages.

    Raises:
        MmclError: one of them cannot be read.
    """
    pictures = [Path(image) if isinstance(image, str) else image for image in images]
    pixels, errors = decode_many(pictures, tower.size, tower.resize, exact_decoding=tower.exact_decoding)
    if errors:
        position, reason = next(iter(errors.items()))
        what = images[position]
        shown = what if isinstance(what, (str, Path)) else f"input {start + position}"
        raise MmclError(f"{shown}: not a readable image ({reason})")
    return pixels
