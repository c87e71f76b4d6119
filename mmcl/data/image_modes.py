"""What a decoded image shows, as 8-bit RGB: orientation, bit depths, transparency; and what a file is that is none."""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import numpy as np
from PIL import Image

_STRIP_PIXELS = 2**22  # converted at a time: conversions make several copies
_ORIENTATION = 0x0112
_TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WHITE = (255, 255, 255, 255)
_DRAWING = re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!DOCTYPE svg[^>]*>\s*)?<(\w+:)?svg[\s/>]", re.DOTALL)
_OTHER_FILES = {
    re.compile(rb"\s*(<!--.*?-->\s*)*<(!doctype html|html|head|body)[\s>]", re.IGNORECASE | re.DOTALL): (
        "an HTML page, not an image: what was downloaded is an error or a login page; fetch the image again"
    ),
    re.compile(rb"version https://git-lfs"): "a git-lfs pointer, not an image; fetch the files with: git lfs pull",
    re.compile(rb"%PDF-"): "a PDF document, not an image; rasterise its pages (to PNG, for example)",
    re.compile(rb".{4}ftyp(heic|heix|heim|heis|hevc|mif1|msf1)", re.DOTALL): (
        "a HEIC image, which Pillow does not read; convert it (to JPEG, for example)"
    ),
    re.compile(rb"II\*\x00|MM\x00\*|II\+\x00|MM\x00\+"): (
        "a TIFF of a kind that Pillow does not read (of 64-bit or several floating-point channels, for example); save "
        "it with 8 or 16 bits a channel"
    ),
    re.compile(rb"\xff\x0a|\x00\x00\x00\x0cJXL "): (
        "a JPEG XL image, which Pillow does not read; convert it (to JPEG, for example)"
    ),
    re.compile(rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ", re.DOTALL): "a video, not an image; extract its frames",
}


class ImageError(ValueError):
    """An image that cannot be used, with the reason."""


def forget_tags(image: Image.Image) -> None:
    """Keep only the orientation of the EXIF tags of an image that is not loaded yet.

    Of a TIFF Pillow reads others too while it loads, and fails at those of odd types."""
    with suppress(Exception):  # as in upright
        exif = image.getexif()
        for tag in list(exif):
            if tag != _ORIENTATION:
                with suppress(Exception):
                    del exif[tag]


def upright(image: Image.Image) -> Image.Image:
    """``image`` turned as its EXIF orientation says. No other tag is looked at: what is wrong there harms no pixel."""
    image.load()  # by which Pillow turns a TIFF, and takes the orientation out
    try:
        method = _TRANSPOSED.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises SyntaxError, struct.error, TypeError and more for damaged tags
        method = None
    return image if method is None else image.transpose(method)


def as_rgb(image: Image.Image) -> Image.Image:
    """``image`` in mode RGB, itself if it is: composited on white where it is transparent, of 8 bits where it has more.

    Raises ``ImageError`` for levels of which it is not known what is white.
    """
    image.load()
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    convert = _conversion(image)
    rows = max(1, _STRIP_PIXELS // max(1, image.width))
    if rows >= image.height:
        return convert(image)
    converted = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        converted.paste(convert(image.crop((0, top, image.width, min(top + rows, image.height)))), (0, top))
    return converted


def unknown_format(data: bytes) -> str:
    """What a file that is no image Pillow knows seems to be, by its first bytes, and what to do with it."""
    if not data:
        return "empty"
    start = data
    if data.startswith(b"\x1f\x8b"):
        try:
            start = gzip.GzipFile(fileobj=io.BytesIO(data)).read(4096)
        except (OSError, EOFError, ValueError):
            start = data
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        start = start.decode("utf-16", "ignore").encode()
    start = start.removeprefix(b"\xef\xbb\xbf")
    if _DRAWING.match(start):
        return "an SVG drawing, not an image of pixels; rasterise it (to PNG, for example)"
    return next(
        (what for sign, what in _OTHER_FILES.items() if sign.match(start)), "not an image in a format that Pillow reads"
    )


def _conversion(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """What makes RGB of a part of ``image``."""
    mode = image.mode
    if mode == "F":
        low, high = _extrema(image)
        if low >= -0.5 and high <= 1.5:  # resampling overshoots
            return lambda part: _eight_bits(255 * _finite(part))
        # Levels of 8 bits that are so low are a black image, unless they are a few that were not scaled.
        if low >= -16 and high <= 271 and (high > 16 or (low >= 0 and _are_integers(image))):
            return lambda part: _eight_bits(_finite(part))
        raise ImageError(f"floating-point levels from {low:g} to {high:g}; scale them to 0…1, or save 8 or 16 bits")
    if mode == "I":
        low, high = _extrema(image)
        if low < 0 or high > 65535:
            raise ImageError(f"levels from {low:g} to {high:g}; scale them to 8 or 16 bits without sign")
        if high <= 255 and image.format != "PPM":  # of which Pillow scales all levels to 16 bits
            return lambda part: _eight_bits(np.asarray(part))
    if mode == "I" or mode.startswith("I;16"):
        return lambda part: _eight_bits((np.asarray(part).astype(np.int64) + 128) // 257)
    if image.has_transparency_data:
        return _on_white
    return lambda part: part.convert("RGB")


def _extrema(image: Image.Image) -> tuple[float, float]:
    low, high = cast(tuple[float, float], image.getextrema())  # a pair a channel is for other modes
    return low, high


def _are_integers(image: Image.Image) -> bool:
    levels = np.asarray(image)
    return bool((levels == np.rint(levels)).all())


def _eight_bits(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(levels).clip(0, 255).astype(np.uint8)).convert("RGB")


def _finite(part: Image.Image) -> np.ndarray:
    levels = np.asarray(part)
    if not np.isfinite(levels).all():
        raise ImageError("floating-point levels that are NaN or infinite; fill them")
    return levels


def _on_white(part: Image.Image) -> Image.Image:
    part = part.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", part.size, _WHITE), part).convert("RGB")
