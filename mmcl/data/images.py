"""Images of any kind to RGB: squares of one size, or originals of a bounded one, for random crops."""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from mmcl.data.identity import stable_hash
from mmcl.data.image_modes import ImageError, as_rgb, forget_tags, unknown_format, upright
from mmcl.data.resize_modes import ResizeMode, decoding_target, original, patch_side, resize

__all__ = [
    "ImageError",
    "ImageInput",
    "ResizeMode",
    "decode",
    "decode_many",
    "decode_originals",
    "decode_shaped",
    "image_hash",
    "image_suffixes",
    "load_original",
    "load_pixels",
    "original",
    "patch_side",
    "resize",
    "usable_cpus",
]

ImageInput: TypeAlias = bytes | str | Path | Image.Image | np.ndarray

# Formats that Pillow knows by name only, or reads by another program.
_STUBS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_DRAFT = 2  # a JPEG is decoded at no less than this times the target, so that the resampling filter still sets quality
_HELD_PIXELS = 2**27  # decoded at a time by all threads together; one image of more is decoded alone


class PreparedImage(NamedTuple):
    """An image as an image tower takes it: decoded, and resized once and for all.

    Attributes:
        pixels: uint8 (size, size, 3); (H, W, 3) of an original, or where the tower takes images of other shapes.
    """

    pixels: np.ndarray


class _PixelBudget:
    """Lets threads decode as long as their images together hold no more than ``limit`` pixels."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Wait until the budget has ``pixels`` left, or until nothing else is held."""
        with self._changed:
            self._changed.wait_for(lambda: self.held == 0 or self.held + pixels <= self.limit)
            self.held += pixels
        try:
            yield
        finally:
            with self._changed:
                self.held -= pixels
                self._changed.notify_all()


_budget = _PixelBudget(_HELD_PIXELS)
# A thread that holds some of the budget may be in the middle of decoding when the process forks: the child begins anew.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _budget.__init__(_HELD_PIXELS))  # type: ignore[misc]


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of files that Pillow reads as images, in lower case, with their dots."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN and kind not in _STUBS)


def decode(image: ImageInput | None, target: int | None = None) -> Image.Image:
    """``image`` as an RGB image, upright by its EXIF orientation.

    ``image`` is encoded bytes, the path of a file, a PIL image, or a uint8 array of shape (H, W), (H, W, 1), (H, W, 3)
    or (H, W, 4). Transparency is composited on white (where open_clip and transformers show the colour that is stored
    under it), 16-bit levels are scaled to 8, floating-point levels from 0 to 1 or from 0 to 255 to 8 bits, and of an
    animation the first frame is taken. ``target`` is the side, in pixels, that the caller will resize to: JPEG files
    much larger are decoded at a half, a quarter or an eighth of their size, which is faster; the pixels then differ a
    little, and a model's vectors by up to 8e-3, from those of the exact decoding that is done without ``target``.

    Raises ``ImageError`` for what is missing, unreadable, truncated, or larger than ``PIL.Image.MAX_IMAGE_PIXELS``
    (Pillow itself only warns up to twice that).
    """
    with decoded(image, target) as opened:
        return opened


@contextmanager
def decoded(image: ImageInput | None, target: int | None = None) -> Iterator[Image.Image]:
    """As :func:`decode`, for as long as the block runs: threads that decode wait for each other where their images
    together would hold more than a hundred million pixels. The block must decode no other image."""
    with ExitStack() as stack:
        with _in_words(image):
            opened = _read(image, target, stack)
        yield opened


def load_pixels(
    image: ImageInput | None,
    size: int,
    mode: ResizeMode = "crop",
    *,
    exact_decoding: bool = False,
    exact_resize: bool = True,
) -> np.ndarray:
    """Decode and resize an image: uint8 (``size``, ``size``, 3), or as :func:`resize` gives it.

    Raises ``ImageError`` as :func:`decode` does.

    What is decoded is let go of before this returns, so that threads hold little more than they are working on.
    ``exact_decoding`` decodes large JPEG files at their full size, see :func:`decode`; ``exact_resize`` resamples as
    Pillow does, see :func:`mmcl.data.resample.resampled`.
    """
    with decoded(image, None if exact_decoding else decoding_target(size, mode)) as opened:
        return resize(opened, size, mode, exact=exact_resize)


def load_original(
    image: ImageInput | None, size: int, mode: ResizeMode, stored: int, *, exact_decoding: bool = False
) -> np.ndarray:
    """Decode an image for random crops, see :func:`original`: uint8 (H, W, 3). Otherwise as :func:`load_pixels`."""
    target = max(stored, decoding_target(size, mode) or stored)
    with decoded(image, None if exact_decoding else target) as opened:
        return original(opened, size, mode, stored)


def _read(image: ImageInput | None, target: int | None, stack: ExitStack) -> Image.Image:
    if image is None:
        raise ImageError("no image")
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    if isinstance(image, Image.Image):
        return as_rgb(upright(image))
    opened = stack.enter_context(Image.open(io.BytesIO(image) if isinstance(image, bytes) else image))
    _refuse_bomb(opened)
    if target is not None:
        opened.draft(None, (_DRAFT * target, _DRAFT * target))
    forget_tags(opened)
    stack.enter_context(_budget.hold(opened.width * opened.height))
    return as_rgb(upright(opened))


@contextmanager
def _in_words(image: ImageInput | None) -> Iterator[None]:
    """Turn what Pillow raises for an image into an ``ImageError`` that says what is wrong."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except FileNotFoundError as error:
        url = re.search(r"https?:/", str(image))
        raise ImageError("a URL, not a file here: download the images first" if url else "no such file") from error
    except UnidentifiedImageError as error:
        raise ImageError(unknown_format(_first_bytes(image))) from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error and more
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ImageError(" ".join(str(reason).split()) or type(error).__name__) from error


def _first_bytes(image: ImageInput | None) -> bytes:
    if isinstance(image, bytes):
        return image[:4096]
    if isinstance(image, str | Path):
        with suppress(OSError), Path(image).open("rb") as file:
            return file.read(4096)
    return b""


def decode_many(
    images: Sequence[ImageInput | PreparedImage | None],
    size: int,
    mode: ResizeMode = "crop",
    threads: int | None = None,
    *,
    exact_decoding: bool = False,
    exact_resize: bool = True,
) -> tuple[np.ndarray, dict[int, str]]:
    """Decode and resize images in threads (Pillow releases the interpreter lock), as :func:`load_pixels` does.

    Returns a uint8 array (n, ``size``, ``size``, 3), and for each position that could not be decoded the reason; its
    pixels are zero.
    """
    pixels = np.zeros((len(images), size, size, 3), dtype=np.uint8)

    def load(position: int) -> None:
        image = images[position]
        if isinstance(image, PreparedImage):
            pixels[position] = image.pixels
        else:
            pixels[position] = load_pixels(image, size, mode, exact_decoding=exact_decoding, exact_resize=exact_resize)

    return pixels, _in_threads(load, len(images), threads)


def decode_shaped(
    images: Sequence[ImageInput | PreparedImage | None],
    size: int,
    mode: ResizeMode,
    threads: int | None = None,
    *,
    exact_decoding: bool = False,
    exact_resize: bool = True,
) -> tuple[list[np.ndarray], dict[int, str]]:
    """As :func:`decode_many`, in a mode that keeps the shape of images: uint8 (H, W, 3) each. What could not be decoded
    is one patch of zeros."""
    side = patch_side(mode) or size
    shaped = [np.zeros((side, side, 3), dtype=np.uint8)] * len(images)

    def load(position: int) -> None:
        image = images[position]
        if isinstance(image, PreparedImage):
            shaped[position] = image.pixels
        else:
            exact = {"exact_decoding": exact_decoding, "exact_resize": exact_resize}
            shaped[position] = load_pixels(image, size, mode, **exact)

    return shaped, _in_threads(load, len(images), threads)


def decode_originals(
    images: Sequence[ImageInput | None],
    size: int,
    mode: ResizeMode,
    stored: int,
    threads: int | None = None,
    *,
    exact_decoding: bool = False,
) -> tuple[list[np.ndarray], dict[int, str]]:
    """Decode images in threads, as :func:`load_original` does.

    Returns a uint8 array (H, W, 3) each, and for each position that could not be decoded the reason; its image has no
    pixels.
    """
    originals = [np.empty((0, 0, 3), dtype=np.uint8)] * len(images)

    def load(position: int) -> None:
        originals[position] = load_original(images[position], size, mode, stored, exact_decoding=exact_decoding)

    return originals, _in_threads(load, len(images), threads)


def _in_threads(load: Callable[[int], None], count: int, threads: int | None) -> dict[int, str]:
    """Call ``load`` for each position, and return the reasons of those that raised ``ImageError``."""
    errors: dict[int, str] = {}

    def work(position: int) -> None:
        try:
            load(position)
        except ImageError as error:
            errors[position] = str(error)

    threads = min(threads or usable_cpus(), count)
    if threads <= 1:
        for position in range(count):
            work(position)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(work, range(count)):
                pass
    return dict(sorted(errors.items()))


def image_hash(pixels: np.ndarray) -> int:
    """An identity of a decoded image (H, W, 3): the same for the same pixels in the same shape."""
    height, width, _ = pixels.shape
    return stable_hash(pixels.tobytes() + (b"" if height == width else width.to_bytes(4, "little")))


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _refuse_bomb(image: ImageFile.ImageFile) -> None:
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise ImageError(
            f"{image.width} × {image.height} pixels exceed PIL.Image.MAX_IMAGE_PIXELS = {Image.MAX_IMAGE_PIXELS} "
            "(a decompression bomb?)"
        )


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if (
        array.dtype != np.uint8
        or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)))
        or not array.size
    ):
        raise ImageError(f"an array of {array.dtype} {array.shape}; expected uint8 (H, W) or (H, W, 1, 3 or 4)")
    return Image.fromarray(array)
