"""Pictures of any kind to RGB squares of one size."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

ImageInput: TypeAlias = bytes | str | Path | Image.Image | np.ndarray
ResizeMode: TypeAlias = Literal[
    "crop", "squash", "pad", "crop-bilinear", "squash-bilinear", "crop-floor", "crop-floor-bilinear"
]

PICTURE_SUFFIXES = {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_DRAFT = 2  # a JPEG is decoded at no less than this times the target, so that the resampling filter still sets quality
_LONGEST = 4  # before a centre crop, the sides of a strip longer than this times its width are cut off


class ImageError(ValueError):
    """A picture that cannot be used, with the reason."""


def decode(image: ImageInput | None, target: int | None = None) -> Image.Image:
    """``image`` as an RGB picture, upright by its EXIF orientation.

    ``image`` is encoded bytes, the path of a file, a PIL picture, or a uint8 array of shape (H, W), (H, W, 1),
    (H, W, 3) or (H, W, 4). Transparency is composited on white, 16-bit levels are scaled to 8, and of an animation the
    first frame is taken. ``target`` is the side, in pixels, that the caller will resize to: JPEG files much larger are
    decoded at a half, a quarter or an eighth of their size.

    Raises ``ImageError`` for what is missing, unreadable, truncated, or larger than ``PIL.Image.MAX_IMAGE_PIXELS``
    (Pillow itself only warns up to twice that).
    """
    try:
        if isinstance(image, Image.Image):
            return _to_rgb(image)
        if isinstance(image, np.ndarray):
            return _to_rgb(_from_array(image))
        if image is None:
            raise ImageError("no picture")
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            _refuse_bomb(opened)
            if target is not None:
                opened.draft(None, (_DRAFT * target, _DRAFT * target))
            return _to_rgb(opened)
    except (ImageError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise ImageError("no such file") from error
    except UnidentifiedImageError as error:
        raise ImageError("empty" if image == b"" else "not a picture in a known format") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error and more
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ImageError(" ".join(str(reason).split()) or type(error).__name__) from error


def resize(image: Image.Image, size: int, mode: ResizeMode = "crop") -> np.ndarray:
    """An RGB picture as a uint8 array (``size``, ``size``, 3), resampled bicubically with antialiasing.

    ``crop`` brings the shorter side to ``size`` and cuts the centre out, as CLIP does; ``squash`` ignores the aspect
    ratio; ``pad`` brings the longer side to ``size`` and centres the picture on white. Pretrained models ask for
    variants: ``-bilinear`` resamples bilinearly; ``-floor`` rounds the corner of the cut-out down, as transformers
    does, where torchvision and OpenAI's code round half to even.
    """
    if mode not in get_args(ResizeMode):
        raise ValueError(f"resize mode is one of {', '.join(get_args(ResizeMode))}, not {mode!r}")
    how, *variants = mode.split("-")
    resampling = Image.Resampling.BILINEAR if "bilinear" in variants else Image.Resampling.BICUBIC
    if how == "squash":
        return np.asarray(image.resize((size, size), resampling))
    if how == "pad":
        scale = size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        square = Image.new("RGB", (size, size), (255, 255, 255))
        inner = image.resize((width, height), Image.Resampling.BICUBIC)
        square.paste(inner, ((size - width) // 2, (size - height) // 2))
        return np.asarray(square)
    if max(image.size) > _LONGEST * min(image.size):
        image = _centre_crop(image, *(min(side, _LONGEST * min(image.size)) for side in image.size))
    shorter = min(image.size)
    width, height = (side * size // shorter for side in image.size)
    image = image.resize((width, height), resampling)
    if "floor" in variants:
        left, top = (width - size) // 2, (height - size) // 2
        return np.asarray(image.crop((left, top, left + size, top + size)))
    return np.asarray(_centre_crop(image, size, size))


def decode_many(
    images: Sequence[ImageInput | None], size: int, mode: ResizeMode = "crop", threads: int | None = None
) -> tuple[np.ndarray, dict[int, str]]:
    """Decode and resize pictures in threads (Pillow releases the interpreter lock).

    Returns a uint8 array (n, ``size``, ``size``, 3), and for each position that could not be decoded the reason; its
    pixels are zero.
    """
    pixels = np.zeros((len(images), size, size, 3), dtype=np.uint8)
    errors: dict[int, str] = {}

    def work(position: int) -> None:
        try:
            pixels[position] = resize(decode(images[position], target=size), size, mode)
        except ImageError as error:
            errors[position] = str(error)

    threads = min(threads or usable_cpus(), len(images))
    if threads <= 1:
        for position in range(len(images)):
            work(position)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(work, range(len(images))):
                pass
    return pixels, dict(sorted(errors.items()))


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


def _to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.int64)
        return Image.fromarray(((levels + 128) // 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _centre_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
