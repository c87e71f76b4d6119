"""What ``encode`` is given: inputs of every kind, and what is wanted of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Iterable, KeysView, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from mmcl.data.images import PreparedImage
from mmcl.data.processors.image import ImageProcessor
from mmcl.models.towers import Towers
from mmcl.runtime.device import Devices
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import existing_file

log = logging.getLogger("mmcl")

_LONGEST_NAME = 1024
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


class Options(NamedTuple):
    """What is wanted of every input.

    Attributes:
        batch_size: inputs a forward pass; None fills text batches up to a number of tokens.
        normalize: give every vector unit length.
        dim: keep the first so many dimensions.
        prompt: as for ``Encoder.encode``.
        compute: ``float32``, ``bfloat16`` or ``int8``, see ``Encoder.set_compute``.
        skip: leave out images that cannot be read.
    """

    batch_size: int | None
    normalize: bool
    dim: int
    prompt: str | None
    compute: str
    skip: bool = False


@dataclass(frozen=True)
class Request:
    """The settings of ``Encoder.encode``, which describes them."""

    batch_size: int | str = "auto"
    normalize: bool = True
    precision: str = "float32"
    truncate_dim: int | None = None
    prompt: str | None = None
    show_progress: bool | None = None
    devices: Devices | None = None
    calibration: Any = None

    def options(self, towers: Towers, compute: str) -> Options:
        """What is wanted of every input, checked.

        Raises:
            MmclError: ``truncate_dim`` or ``batch_size`` is out of range.
        """
        dim, size = self.truncate_dim, self.batch_size
        if dim is not None and not (is_integer(dim) and 1 <= dim <= towers.width):
            raise MmclError(f"encode: truncate_dim {dim!r} must be between 1 and the model's {towers.width}")
        if size != "auto" and not (is_integer(size) and int(size) >= 1):
            raise MmclError(f"encode: batch_size is {size!r}; give 'auto' or a number from 1 up")
        return Options(None if isinstance(size, str) else size, self.normalize, dim or towers.dim, self.prompt, compute)


@dataclass(frozen=True)
class Encoded:
    """Vectors, and what became of the inputs.

    Attributes:
        vectors: (N, D) in the order of the inputs that were not skipped; (D,) for a single input.
        truncated: (N,) bool, which of them are texts longer than the model reads; a single bool for a single input.
        skipped: position of each input that was left out to the reason.
    """

    vectors: np.ndarray
    truncated: np.ndarray | bool
    skipped: dict[int, str]


def tower_of_each(towers: Towers, items: Sequence[Any], wanted: str | None, prompt: str | None) -> list[str]:
    """The name of the tower that embeds each input.

    Args:
        towers: to choose from.
        items: of any kind.
        wanted: a modality or the name of a tower, for all inputs; by type if absent.
        prompt: as for ``encode``.

    Raises:
        MmclError: an input is of no known kind, there is no such tower, several are of the modality, or there is a
            prompt and no text.
    """
    named = wanted if wanted is not None and wanted in towers.embedders else None
    modality = wanted if named is None else towers.modality(named)
    row = next((place for place, item in enumerate(items) if isinstance(item, Mapping)), None)
    if row is not None and "table" not in towers.modalities:
        raise MmclError(f"encode: input {row} is a dict, and '{towers.name}' reads no rows; give a text or an image")
    kinds = [modality_of(item, place, modality, towers.names) for place, item in enumerate(items)]
    names = {kind: named or towers.resolve(kind) for kind in dict.fromkeys(kinds)}
    if prompt and set(kinds) == {"image"}:
        raise MmclError(f"encode: prompt '{prompt}' goes before texts, and all inputs are images; leave it out")
    return [names[kind] for kind in kinds]


def listed(inputs: Any) -> tuple[list[Any], bool]:
    """The inputs as a list, and whether it was a single one.

    Raises:
        MmclError: it is neither an input nor a collection of them.
    """
    one = _plain(inputs)
    image = isinstance(one, np.ndarray) and one.dtype == np.uint8 and one.ndim in (2, 3)
    if image or isinstance(one, (str, bytes, Path, Image.Image, PreparedImage, dict)):
        return [one], True
    check_collection(one, "encode")
    try:
        items = one.to_pylist() if hasattr(one, "to_pylist") else list(one)  # of pyarrow, whose items are scalars
    except TypeError as error:  # a tensor without dimensions
        raise MmclError(f"encode: got a {type(one).__name__}, which cannot be listed ({error})") from None
    return [item if type(item) is str else _plain(item) for item in items], False


def check_collection(inputs: Any, where: str) -> None:
    """Refuse what is no collection of inputs in an order, or whose items are not its rows.

    Raises:
        MmclError: it is such a thing; ``where`` begins the line.
    """
    kind = type(inputs).__name__
    columns = getattr(inputs, "column_names", None) or getattr(inputs, "columns", None)
    if columns is not None and hasattr(inputs, "__getitem__"):
        names = ", ".join(repr(str(name)) for name in list(columns)[:8])
        raise MmclError(f"{where}: got a {kind}; give one of its columns, as table['caption'] (it has {names})")
    if isinstance(inputs, Set) and not isinstance(inputs, KeysView):
        raise MmclError(f"{where}: got a {kind}, which has no order; give a list, such as sorted(...)")
    if isinstance(inputs, Mapping) or not isinstance(inputs, Iterable):
        raise MmclError(f"{where}: got a {kind}; give a text, an image or a list of them")


def _plain(item: Any) -> Any:
    """An input in its plainest form: what wraps a text, encoded bytes or a path is taken off.

    Raises:
        MmclError: it is a file that was opened as text, or cannot be read.
    """
    if isinstance(item, np.ndarray):
        return item.item() if item.ndim == 0 else item
    if isinstance(item, (bytearray, memoryview)):
        return bytes(item)
    if isinstance(item, (str, bytes, Path, Image.Image)):
        return item
    if isinstance(item, os.PathLike):
        return Path(os.fsdecode(item))
    if callable(getattr(item, "read", None)):
        try:
            content = item.read()
        except (OSError, ValueError) as error:  # a closed file is a ValueError
            raise MmclError(f"encode: an open file cannot be read ({error})") from None
        if isinstance(content, bytes):
            return content
        raise MmclError("encode: got a file that is opened as text; give its lines, file.read().splitlines()")
    return item


def modality_of(item: Any, position: int, wanted: str | None, towers: Sequence[str] = ()) -> str:
    """``image``, ``text`` or ``table``, by the type of an input or as ``wanted``; ``towers`` are the names to choose
    from instead.

    Raises:
        MmclError: it is neither, or not what is wanted.
    """
    if wanted not in (None, "image", "text", "table"):
        names = " or ".join(dict.fromkeys(["image", "text", *towers]))
        raise MmclError(f"encode: modality '{wanted}' is not known; use {names}")
    if isinstance(item, Mapping) and wanted in (None, "table"):
        return "table"
    if wanted == "table":
        raise MmclError(f"encode: input {position} is a {type(item).__name__}; a row is a dict, by its columns")
    if isinstance(item, str):
        return wanted or "text"
    if isinstance(item, np.ndarray) and item.dtype.kind not in "biuf":
        raise MmclError(f"encode: input {position} is an array of {item.dtype}; give the texts in one flat list")
    if isinstance(item, (bytes, Path, Image.Image, np.ndarray, PreparedImage)) and wanted != "text":
        return "image"
    if item is None:
        raise MmclError(f"encode: input {position} is None; leave it out, or give '' to have a vector in its place")
    kind = type(item).__name__
    raise MmclError(f"encode: input {position} is a {kind}; text is a str, an image a Path, PIL image, array or bytes")


def is_integer(value: object) -> bool:
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


def hint_at_files(texts: Iterable[str]) -> None:
    """Say how many texts are names of image files that exist, whose words are embedded all the same."""
    names = [text for text in texts if len(text) < _LONGEST_NAME and text.lower().endswith(_SUFFIXES)]
    if files := [name for name in names if existing_file(name)]:
        log.warning(
            "%d texts are names of image files, such as '%s': their words are embedded; for the images give "
            "pathlib.Path(...) or modality='image'",
            len(files),
            files[0],
        )


def read_images(
    images: Sequence[Any], processor: ImageProcessor, start: int, skip: bool = False
) -> tuple[dict[str, Tensor], dict[int, str]]:
    """The inputs of an image tower as ``processor`` makes them; and why some cannot be read, by their position.

    Args:
        images: n of any kind.
        processor: of the tower that they are for.
        start: the number of the first, for messages.
        skip: give the reasons, and zeros as pixels, rather than raise the first.

    Raises:
        MmclError: one of them cannot be read.
    """
    named = [Path(image) if isinstance(image, str) else image for image in images]
    inputs, errors = processor.inputs(named)
    if errors and not skip:
        position, reason = next(iter(errors.items()))
        what = images[position]
        shown = what if isinstance(what, (str, Path)) else f"input {start + position}"
        raise MmclError(f"{shown}: not a readable image ({reason})")
    return inputs, errors
