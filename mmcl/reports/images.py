"""Images inside the page: small, safe to show, and part of the file."""

from __future__ import annotations

import base64
import io

from PIL import Image

from mmcl.data.images import ImageError, ImageInput, decode

SIDE = 192  # pixels: twice the side at which the page shows an image, for dense screens


def data_uri(image: ImageInput | None) -> str | None:
    """An image as a ``data:`` URI of at most ``SIDE`` pixels a side; None if it cannot be shown.

    Whatever comes in is decoded and written anew, so that no foreign bytes reach the page and every browser can show
    what Pillow can read. Transparent images lie on white, as the models see them.
    """
    if image is None:
        return None
    try:
        shown = decode(image, target=SIDE)
    except ImageError:
        return None
    shown.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    shown.save(buffer, format="WEBP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
