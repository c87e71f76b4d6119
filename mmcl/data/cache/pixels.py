"""Images decoded and resized once, into an array on disk that every later epoch and run maps into memory."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from mmcl.data.identity import stable_hash
from mmcl.data.images import ResizeMode, decode_many, usable_cpus
from mmcl.data.rows import Rows
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import atomic_folder, cache_dir
from mmcl.runtime.progress import progress

log = logging.getLogger("mmcl")

_FORMAT = 2  # part of the key: raise it when decoding or resizing changes
_BLOCK_BYTES = 64 * 2**20  # decoded pixels held in memory at a time
_ERRORS = "errors.json"  # written last


@dataclass(frozen=True)
class _Images:
    """A column of images and the square they are to become."""

    rows: Rows
    column: str
    size: int
    resize: ResizeMode
    exact_decoding: bool

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self.rows), self.size, self.size, 3)

    def decode(
        self, indices: Sequence[int] | np.ndarray, threads: int | None = None
    ) -> tuple[np.ndarray, dict[int, str]]:
        """Pixels of the rows at ``indices``, and position to reason (with the path of a file) where there are none."""
        images = self.rows.images(self.column, indices)
        pixels, reasons = decode_many(images, self.size, self.resize, threads, exact_decoding=self.exact_decoding)
        for position in reasons:
            if isinstance(path := images[position], Path):
                reasons[position] = f"{path}: {reasons[position]}"
        return pixels, reasons

    def key(self) -> str:
        """Identifies the pixels: where rows name files, these may change while the rows do not."""
        wanted = (_FORMAT, self.rows.fingerprint, self.column, self.size, self.resize, self.exact_decoding)
        digest = hashlib.blake2b(repr(wanted).encode(), digest_size=16)
        first = self.rows.images(self.column, range(min(100, len(self.rows))))
        if any(isinstance(image, Path) for image in first):
            for block in _blocks(len(self.rows), 10_000):
                for image in self.rows.images(self.column, block):
                    if isinstance(image, Path):
                        digest.update(repr((str(image), _state(image))).encode())
        return digest.hexdigest()

    def fit(self, folder: Path, cache_gb: float) -> bool:
        """Whether the pixels may be stored in ``folder``; if not, say why."""
        needed, free = math.prod(self.shape), shutil.disk_usage(folder).free
        if needed <= min(cache_gb * 1e9, 0.95 * free):
            return True
        reason = f"cache_gb is {cache_gb:g}" if needed > cache_gb * 1e9 else f"the disk has {free / 1e9:.2f} GB free"
        log.warning(
            f"{self.rows.name}: {len(self.rows)} images take {needed / 1e9:.2f} GB as pixels and {reason}: "
            "they are decoded again whenever they are used"
        )
        return False


class Pixels:
    """The images of a column of rows, at one size. Made by ``open_pixels``.

    ``errors`` maps the numbers of rows without a readable image to the reason; their pixels are zero. ``hashes``
    (N,) int64 are equal for equal decoded images; they are 0 for the rows in ``errors``. ``stored`` says whether the
    pixels are on disk, or are decoded whenever they are taken, then by so many ``threads`` (one for each CPU if None).
    """

    threads: int | None = None

    def __init__(self, images: _Images, hashes: np.ndarray, errors: dict[int, str], array: np.ndarray | None) -> None:
        self.size = images.size
        self.hashes = hashes
        self.errors = errors
        self.stored = array is not None
        self._images = images
        self._array = array

    def __len__(self) -> int:
        return len(self.hashes)

    def take(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The images of the rows at ``indices``: uint8 (n, ``size``, ``size``, 3), a copy.

        Raises ``MmclError`` for an image that could be read when the pixels were opened, and no longer can.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        if self._array is not None:
            return np.array(self._array[chosen])
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
) -> Pixels:
    """The images of ``column`` as ``size`` × ``size`` RGB squares (``resize`` as in ``images.resize``,
    ``exact_decoding`` as in ``images.load_pixels``).

    The first call decodes every image, in threads, into the cache folder ``pixels``; later calls with the same
    content find it there. If the array would exceed ``cache_gb`` (10⁹ bytes) or the free disk, only hashes and errors
    are kept, and images are decoded again whenever they are taken.

    Raises ``MmclError`` for the first unreadable image if ``on_error`` is "fail", and ``OSError`` if the disk runs
    full meanwhile.
    """
    rows.require([column])
    images = _Images(rows, column, size, resize, exact_decoding)
    folder = cache_dir("pixels")
    home = folder / images.key()
    pixels = _load(home, images)
    if pixels is None:
        stored = images.fit(folder, cache_gb)
        home = home if stored else folder / f"{home.name}-hashes"
        pixels = _load(home, images)
    if pixels is None:
        _build(home, images, stored, on_error, show_progress)
        pixels = _load(home, images)
    if pixels is None:
        raise OSError(f"{home}: the pixels just written cannot be read back")
    if on_error == "fail":
        _fail_on(pixels.errors, rows)
    return pixels


def _state(file: Path) -> tuple[int, int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _blocks(count: int, length: int) -> Iterator[range]:
    for start in range(0, count, length):
        yield range(start, min(start + length, count))


def _load(home: Path, images: _Images) -> Pixels | None:
    """What ``_build`` left in ``home``; None if there is nothing. Something that is not whole is removed."""
    if not home.exists():
        return None
    try:
        hashes = np.load(home / "hashes.npy", allow_pickle=False)
        errors = {int(row): reason for row, reason in json.loads((home / _ERRORS).read_text("utf-8")).items()}
        file = home / "pixels.npy"
        array = np.load(file, mmap_mode="r", allow_pickle=False) if file.exists() else None
        if hashes.shape != images.shape[:1] or (array is not None and array.shape != images.shape):
            raise ValueError("another shape")
    except (OSError, ValueError, EOFError):
        shutil.rmtree(home, ignore_errors=True)
        return None
    return Pixels(images, hashes, errors, array)


def _build(home: Path, images: _Images, stored: bool, on_error: str, show_progress: bool | None) -> None:
    """Decode every image into a folder beside ``home``, which then takes its name."""
    count = len(images.rows)
    hashes = np.zeros(count, dtype=np.int64)
    errors: dict[int, str] = {}
    with (
        atomic_folder(home, unless=home / _ERRORS) as part,
        _pixel_file(part / "pixels.npy", images.shape) if stored else nullcontext() as file,
        ThreadPoolExecutor(usable_cpus()) as pool,
        progress("Decoding images", count, unit="images", show=show_progress) as advance,
    ):
        for block in _blocks(count, max(8, min(1024, _BLOCK_BYTES // math.prod(images.shape[1:])))):
            pixels, reasons = images.decode(block)
            errors |= {block[position]: reason for position, reason in reasons.items()}
            if on_error == "fail":
                _fail_on(errors, images.rows)
            hashes[block.start : block.stop] = list(pool.map(stable_hash, (image.tobytes() for image in pixels)))
            if file is not None:
                file.write(pixels.data)
            advance(len(block))
        hashes[list(errors)] = 0
        np.save(part / "hashes.npy", hashes)
        (part / _ERRORS).write_text(json.dumps(errors, ensure_ascii=False), "utf-8")


@contextmanager
def _pixel_file(path: Path, shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    """An ``.npy`` file whose pixels are yet to be written, one after the other.

    By plain writes: on a full disk a memory map kills the process (SIGBUS), where ``write`` raises ``OSError``.
    """
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        yield file


def _fail_on(errors: dict[int, str], rows: Rows) -> None:
    if errors:
        row = min(errors)
        name = rows.select([row]).ids()[0]
        raise MmclError(f"{rows.name}: row {name}: {errors[row]}; mend the image, or set on_error to skip")
