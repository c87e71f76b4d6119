"""Images to the pixels that an image tower reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmcl.data.images import ImageInput, PreparedImage, ResizeMode, decode_many, load_original, load_pixels


@dataclass
class ImageProcessor:
    """Images to squares of pixels.

    Attributes:
        size: side of the square, in pixels.
        resize: how an image becomes that square (see ``mmcl.data.images.resize``).
        mean: of the three colours, in [0, 1], which the tower subtracts.
        std: of the three colours, which the tower divides by.
        exact_decoding: decode large JPEG files at their full size (see ``mmcl.data.images.decode``).
        fast_resize: resample by torch rather than Pillow (see ``mmcl.data.resample``); not of originals for crops.
    """

    size: int
    resize: ResizeMode
    mean: Sequence[float]
    std: Sequence[float]
    exact_decoding: bool = False
    fast_resize: bool = False

    def prepare(self, image: ImageInput | None) -> PreparedImage:
        """An image decoded and resized. Raises ``ImageError`` if it cannot be read."""
        return PreparedImage(load_pixels(image, self.size, self.resize, **self._exact()))

    def original(self, image: ImageInput | None, stored: int) -> PreparedImage:
        """An image decoded for random crops, see ``mmcl.data.images.original``. Raises ``ImageError`` if it cannot be
        read."""
        exact = self.exact_decoding
        return PreparedImage(load_original(image, self.size, self.resize, stored, exact_decoding=exact))

    def prepare_many(self, images: Sequence[ImageInput | PreparedImage | None]) -> tuple[np.ndarray, dict[int, str]]:
        """uint8 (n, size, size, 3) of n images, and for each that cannot be read the reason, by its position; its
        pixels are zero."""
        return decode_many(images, self.size, self.resize, **self._exact())

    def _exact(self) -> dict[str, bool]:
        return {"exact_decoding": self.exact_decoding, "exact_resize": not self.fast_resize}
