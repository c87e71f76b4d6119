"""Images decoded and resized once, into a file on disk that every later epoch and run maps into memory."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, Literal, TypeVar

import numpy as np

from mmcl.data.images import (
    ImageInput,
    ResizeMode,
    decode_many,
    decode_originals,
    decode_shaped,
    image_hash,
    patch_side,
    usable_cpus,
)
from mmcl.data.rows import Rows
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import atomic_folder, cache_dir
from mmcl.runtime.progress import progress

log = logging.getLogger("mmcl")
Taken = TypeVar("Taken", np.ndarray, list[np.ndarray])

_FORMAT = 2  # part of the key: raise it when decoding or resizing changes
_BLOCK_BYTES = 64 * 2**20  # decoded pixels held in memory at a time
_ERRORS = "errors.json"  # written last


@dataclass(frozen=True)
class _Images(ABC, Generic[Taken]):
    """A column of images, and how they are decoded.

    Attributes:
        size: of the square that the image tower sees.
        file: name of the file of pixels in the cache, if they are stored.
    """

    rows: Rows
    column: str
    size: int
    resize: ResizeMode
    exact_decoding: bool
    file = ""

    @property
    @abstractmethod
    def bytes_each(self) -> int:
        """About as many for an image."""

    def decode(self, indices: Sequence[int] | np.ndarray, threads: int | None = None) -> tuple[Taken, dict[int, str]]:
        """Pixels of the rows at ``indices``, and position to reason (with the path of a file) where there are none."""
        images = self.rows.images(self.column, indices)
        pixels, reasons = self._decode(images, threads)
        for position in reasons:
            if isinstance(path := images[position], Path):
                reasons[position] = f"{path}: {reasons[position]}"
        return pixels, reasons

    @abstractmethod
    def _decode(self, images: Sequence[ImageInput | None], threads: int | None) -> tuple[Taken, dict[int, str]]: ...

    @abstractmethod
    def header(self) -> bytes:
        """What stands in the file before the pixels."""

    @abstractmethod
    def known_bytes(self) -> int:
        """Of all pixels, as far as they are known before the images are decoded."""

    @abstractmethod
    def read_sizes(self, entry: Path) -> np.ndarray:
        """(N, 2) heights and widths of the images in a folder of the cache."""

    @abstractmethod
    def open(self, path: Path, sizes: np.ndarray) -> Callable[[np.ndarray], Taken]:
        """What takes the images of some rows out of the file, mapped into memory. Raises ``ValueError`` if it does not
        hold images of these ``sizes`` (N, 2)."""

    def _wanted(self) -> tuple[object, ...]:
        return (_FORMAT, self.rows.fingerprint, self.column, self.size, self.resize, self.exact_decoding)

    def key(self) -> str:
        """Identifies the pixels: where rows name files, these may change while the rows do not."""
        digest = hashlib.blake2b(repr(self._wanted()).encode(), digest_size=16)
        first = self.rows.images(self.column, range(min(100, len(self.rows))))
        if any(isinstance(image, Path) for image in first):
            for block in _blocks(len(self.rows), 10_000):
                for image in self.rows.images(self.column, block):
                    if isinstance(image, Path):
                        digest.update(repr((str(image), _state(image))).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class _Squares(_Images[np.ndarray]):
    """Images as the image tower sees them."""

    file = "pixels.npy"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self.rows), self.size, self.size, 3)

    @property
    def bytes_each(self) -> int:
        return 3 * self.size**2

    def _decode(self, images: Sequence[ImageInput | None], threads: int | None) -> tuple[np.ndarray, dict[int, str]]:
        return decode_many(images, self.size, self.resize, threads, exact_decoding=self.exact_decoding)

    def header(self) -> bytes:
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": self.shape})
        return file.getvalue()

    def known_bytes(self) -> int:
        return math.prod(self.shape)

    def read_sizes(self, entry: Path) -> np.ndarray:
        return np.broadcast_to(np.int32(self.size), (len(self.rows), 2))

    def open(self, path: Path, sizes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.shape != self.shape:
            raise ValueError("another shape")
        return lambda rows: np.array(array[rows])


@dataclass(frozen=True)
class _Originals(_Images[list[np.ndarray]]):
    """Images with nothing cut off, see ``mmcl.data.images.original``."""

    stored: int = 0
    file = "pixels.bin"

    @property
    def bytes_each(self) -> int:
        return 4 * max(self.stored, self.size) ** 2  # photographs of 4:3

    def _decode(
        self, images: Sequence[ImageInput | None], threads: int | None
    ) -> tuple[list[np.ndarray], dict[int, str]]:
        exact = self.exact_decoding
        return decode_originals(images, self.size, self.resize, self.stored, threads, exact_decoding=exact)

    def _wanted(self) -> tuple[object, ...]:
        return (*super()._wanted(), self.stored)

    def header(self) -> bytes:
        return b""

    def known_bytes(self) -> int:
        return 0

    def read_sizes(self, entry: Path) -> np.ndarray:
        sizes: np.ndarray = np.load(entry / "sizes.npy", allow_pickle=False)
        return sizes

    def open(self, path: Path, sizes: np.ndarray) -> Callable[[np.ndarray], list[np.ndarray]]:
        ends = np.cumsum(3 * sizes.prod(axis=1, dtype=np.int64))
        if path.stat().st_size != _bytes(sizes):
            raise ValueError("another length")
        flat = np.memmap(path, np.uint8, "r") if _bytes(sizes) else np.empty(0, np.uint8)

        def take(rows: np.ndarray) -> list[np.ndarray]:
            shapes = [(int(height), int(width), 3) for height, width in sizes[rows]]
            return [
                flat[end - math.prod(shape) : end].reshape(shape) for end, shape in zip(ends[rows], shapes, strict=True)
            ]

        return take


@dataclass(frozen=True)
class _Shaped(_Originals):
    """Images as an image tower sees them that keeps their shapes."""

    def _decode(
        self, images: Sequence[ImageInput | None], threads: int | None
    ) -> tuple[list[np.ndarray], dict[int, str]]:
        return decode_shaped(images, self.size, self.resize, threads, exact_decoding=self.exact_decoding)


class Pixels(Generic[Taken]):
    """The images of a column of rows, decoded. Made by ``open_pixels`` and ``open_originals``.

    Attributes:
        size: side of the square that the image tower sees.
        sizes: (N, 2) heights and widths of the images.
        errors: number of each row without a readable image to the reason. Its pixels are zero, or none.
        hashes: (N,) int64, equal for equal decoded images; 0 for the rows in ``errors``.
        stored: whether the pixels are on disk. Else they are decoded whenever they are taken.
        threads: then by so many; one for each CPU if None.
    """

    threads: int | None = None

    def __init__(
        self,
        images: _Images[Taken],
        hashes: np.ndarray,
        sizes: np.ndarray,
        errors: dict[int, str],
        read: Callable[[np.ndarray], Taken] | None,
    ) -> None:
        self.size = images.size
        self.sizes = sizes
        self.hashes = hashes
        self.errors = errors
        self.stored = read is not None
        self._images: _Images[Taken] = images
        self._read: Callable[[np.ndarray], Taken] | None = read

    def __len__(self) -> int:
        return len(self.hashes)

    def take(self, indices: Sequence[int] | np.ndarray) -> Taken:
        """The images of the rows at ``indices``: uint8 (n, ``size``, ``size``, 3), a copy; of originals a list of
        (H, W, 3), which are not to be written to.

        Raises ``MmclError`` for an image that could be read when the pixels were opened, and no longer can.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        if self._read is not None:
            return self._read(chosen)
        pixels, errors = self._images.decode(chosen, self.threads)
        for position, reason in errors.items():
            if int(chosen[position]) not in self.errors:
                raise MmclError(f"row {chosen[position]}: its image was readable and no longer is: {reason}")
        return pixels


def open_pixels(
    rows: Rows,
    column: str,
    *,
    size: int,
    resize: ResizeMode = "crop",
    exact_decoding: bool = False,
    on_error: Literal["skip", "fail"] = "skip",
    cache_gb: float = 20.0,
    show_progress: bool | None = None,
) -> Pixels[Any]:
    """The images of ``column`` as ``size`` × ``size`` RGB squares (``resize`` as in ``images.resize``,
    ``exact_decoding`` as in ``images.load_pixels``); in a mode that keeps their shapes a list of (H, W, 3).

    The first call decodes every image, in threads, into the cache folder ``pixels``; later calls with the same
    content find it there. If the pixels would exceed ``cache_gb`` (10⁹ bytes) or the free disk, only hashes and errors
    are kept, and images are decoded again whenever they are taken.

    Raises ``MmclError`` for the first unreadable image if ``on_error`` is "fail", and ``OSError`` if the disk runs
    full meanwhile.
    """
    kind = _Squares if patch_side(resize) is None else _Shaped
    images: _Images[Any] = kind(rows, column, size, resize, exact_decoding)
    return _open(images, on_error, cache_gb, show_progress)


def open_originals(
    rows: Rows,
    column: str,
    *,
    size: int,
    stored: int,
    resize: ResizeMode = "crop",
    exact_decoding: bool = False,
    on_error: Literal["skip", "fail"] = "skip",
    cache_gb: float = 20.0,
    show_progress: bool | None = None,
) -> Pixels[list[np.ndarray]]:
    """The images of ``column`` with nothing cut off, for random crops, as ``images.original`` makes them with these
    ``size``, ``resize`` and ``stored``; otherwise as :func:`open_pixels`."""
    images = _Originals(rows, column, size, resize, exact_decoding, stored)
    return _open(images, on_error, cache_gb, show_progress)


def original_hashes(
    rows: Rows,
    column: str,
    *,
    size: int,
    stored: int,
    resize: ResizeMode = "crop",
    exact_decoding: bool = False,
    show_progress: bool | None = None,
) -> np.ndarray:
    """(N,) int64: the ``hashes`` of :func:`open_originals`, for which no pixels are stored."""
    images = _Originals(rows, column, size, resize, exact_decoding, stored)
    images.rows.require([column])
    return _decoded(cache_dir("pixels") / images.key(), images, 0, "skip", show_progress).hashes


def _open(images: _Images[Taken], on_error: str, cache_gb: float, show_progress: bool | None) -> Pixels[Taken]:
    images.rows.require([images.column])
    folder = cache_dir("pixels")
    entry = folder / images.key()
    free = shutil.disk_usage(folder).free
    pixels = _decoded(entry, images, min(cache_gb * 1e9, 0.95 * free), on_error, show_progress)
    if not pixels.stored:
        needed = _bytes(pixels.sizes)
        reason = f"cache_gb is {cache_gb:g}" if needed > cache_gb * 1e9 else f"the disk has {free / 1e9:.2f} GB free"
        log.warning(
            f"{images.rows.name}: {len(pixels)} images take {needed / 1e9:.2f} GB as pixels and {reason}: "
            "they are decoded again whenever they are used"
        )
    if on_error == "fail":
        _fail_on(pixels.errors, images.rows)
    return pixels


def _decoded(
    entry: Path, images: _Images[Taken], limit: float, on_error: str, show_progress: bool | None
) -> Pixels[Taken]:
    """What stands in ``entry``, where it is put if it is missing, or lacks pixels that take at most ``limit`` bytes."""
    pixels = _load(entry, images)
    if pixels is None or not (pixels.stored or _bytes(pixels.sizes) > limit):
        _build(entry, images, limit, on_error, show_progress)
        pixels = _load(entry, images)
    if pixels is None:
        raise OSError(f"{entry}: the pixels just written cannot be read back")
    return pixels


def _bytes(sizes: np.ndarray) -> int:
    """Of the pixels of images of these ``sizes`` (N, 2)."""
    return 3 * int(sizes.prod(axis=1, dtype=np.int64).sum())


def _state(file: Path) -> tuple[int, int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _blocks(count: int, length: int) -> Iterator[range]:
    for start in range(0, count, length):
        yield range(start, min(start + length, count))


def _load(entry: Path, images: _Images[Taken]) -> Pixels[Taken] | None:
    """What ``_build`` left in ``entry``; None if there is nothing. Something incomplete is removed."""
    if not entry.exists():
        return None
    try:
        hashes = np.load(entry / "hashes.npy", allow_pickle=False)
        errors = {int(row): reason for row, reason in json.loads((entry / _ERRORS).read_text("utf-8")).items()}
        sizes = images.read_sizes(entry)
        if len(hashes) != len(images.rows) or len(sizes) != len(hashes):
            raise ValueError("another number of rows")
        file = entry / images.file
        read = images.open(file, sizes) if file.exists() else None
    except (OSError, ValueError, EOFError):
        shutil.rmtree(entry, ignore_errors=True)
        return None
    return Pixels(images, hashes, sizes, errors, read)


def _build(entry: Path, images: _Images[Taken], limit: float, on_error: str, show_progress: bool | None) -> None:
    """Decode every image into a folder beside ``entry``, which then takes its name; without the pixels where these take
    more than ``limit`` bytes."""
    count, total, fits = len(images.rows), 0, images.known_bytes() <= limit
    hashes = np.zeros(count, dtype=np.int64)
    sizes = np.zeros((count, 2), dtype=np.int32)
    errors: dict[int, str] = {}
    with (
        atomic_folder(entry, unless=entry / images.file) as part,
        _pixel_file(part / images.file) as file,
        ThreadPoolExecutor(usable_cpus()) as pool,
        progress("Decoding images", count, unit="images", show=show_progress) as advance,
    ):
        file.write(images.header())
        for block in _blocks(count, max(8, min(1024, _BLOCK_BYTES // images.bytes_each))):
            pixels, reasons = images.decode(block)
            errors |= {block[position]: reason for position, reason in reasons.items()}
            if on_error == "fail":
                _fail_on(errors, images.rows)
            rows = slice(block.start, block.stop)
            hashes[rows] = list(pool.map(image_hash, pixels))
            sizes[rows] = [image.shape[:2] for image in pixels]
            total += sum(image.nbytes for image in pixels)
            fits = fits and total <= limit
            if fits:
                for image in pixels:
                    file.write(image.data)
            advance(len(block))
        hashes[list(errors)] = 0
        if not fits:
            (part / images.file).unlink()
        np.save(part / "hashes.npy", hashes)
        np.save(part / "sizes.npy", sizes)
        (part / _ERRORS).write_text(json.dumps(errors, ensure_ascii=False), "utf-8")


@contextmanager
def _pixel_file(path: Path) -> Iterator[BinaryIO]:
    """A file for pixels.

    By plain writes: on a full disk a memory map kills the process (SIGBUS), where ``write`` raises ``OSError``.
    """
    with path.open("wb") as file:
        yield file


def _fail_on(errors: dict[int, str], rows: Rows) -> None:
    if errors:
        row = min(errors)
        name = rows.select([row]).ids()[0]
        raise MmclError(f"{rows.name}: row {name}: {errors[row]}; mend the image, or set on_error to skip")
