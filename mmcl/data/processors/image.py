"""Images to the pixels that an image tower reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmcl.data.images import (
    ImageInput,
    PreparedImage,
    ResizeMode,
    decode_many,
    decode_shaped,
    load_original,
    load_pixels,
    patch_side,
)
from mmcl.data.patches import patch_inputs


@dataclass
class ImageProcessor:
    """Images to squares of pixels, or for a tower that keeps their shapes to patches.

    Attributes:
        size: side of the square, in pixels; of the square of as many patches as an image has at most.
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

    @property
    def patch(self) -> int | None:
        """Side of the patches of an image of any shape, in pixels; None where images become squares."""
        return patch_side(self.resize)

    @property
    def square_resize(self) -> ResizeMode:
        """How an image becomes a square: its centre, for a tower that would keep its shape."""
        return self.resize if self.patch is None else "crop"

    def collate(self, images: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """The inputs of a tower, see :mod:`mmcl.data.batches.inputs`, of pixels that :meth:`prepare` gave."""
        if self.patch is not None:
            return patch_inputs(images, self.patch, (self.size // self.patch) ** 2)
        squares = np.stack(images) if len(images) else np.empty((0, self.size, self.size, 3), dtype=np.uint8)
        return {"pixels": torch.from_numpy(squares)}

    def inputs(self, images: Sequence[ImageInput | PreparedImage | None]) -> tuple[dict[str, Tensor], dict[int, str]]:
        """The same of images, and for each that cannot be read the reason, by its position; its pixels are zero."""
        if self.patch is None:
            squares, errors = self.prepare_many(images)
            return {"pixels": torch.from_numpy(squares)}, errors
        shaped, errors = decode_shaped(images, self.size, self.resize, **self._exact())
        return self.collate(shaped), errors

    def prepare_many(self, images: Sequence[ImageInput | PreparedImage | None]) -> tuple[np.ndarray, dict[int, str]]:
        """uint8 (n, size, size, 3) of n images as squares; and the reasons as :meth:`inputs` gives them."""
        return decode_many(images, self.size, self.square_resize, **self._exact())

    def _exact(self) -> dict[str, bool]:
        return {"exact_decoding": self.exact_decoding, "exact_resize": not self.fast_resize}
