"""Crop, flips and rotation of a batch of images, each by its own parameters, to views of one size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.data.augment.parameters import Parameters, on
from mmcl.data.augment.random_crop import PackedImages, flip, resized_crops


@dataclass(frozen=True)
class Geometry:
    """Crops, flips, then rotates about the centre of the crop. Corners that turn in show the image beyond the crop, and
    ``fill`` beyond the image; all else is torchvision's ``resized_crop``.

    A crop that is larger than its view is resampled with antialiasing, to whole levels of 255. One that is not is
    sampled once, rotation included, without rounding.

    Attributes:
        size: side of a view.
        crops: whether images are cropped; if not, a square of ``size`` is not resampled.
        rotate: largest rotation, in degrees.
        fill: level in [0, 1].
    """

    size: int
    crops: bool
    rotate: float
    fill: float

    def cut(self, images: PackedImages, rows: np.ndarray, parameters: Parameters) -> Tensor:
        """Crops of the images ``rows`` (n,), on their way to views: uint8 (n, 3, …). One that is to be turned has a
        margin as wide as its corners need; others are flipped already."""
        boxes, side = self._with_margins(parameters.boxes), math.ceil(self.size * self._spread)
        flips = None if self.rotate else torch.from_numpy(parameters.flips)
        return resized_crops(
            images, torch.from_numpy(rows), torch.from_numpy(boxes), side, round(255 * self.fill), flips
        )

    def of_cut(self, levels: Tensor, parameters: Parameters) -> Tensor:
        """Views (n, 3, ``size``, ``size``) in [0, 1] of what :meth:`cut` made."""
        if self.rotate == 0:
            return levels / 255
        lengths = parameters.boxes[:, 2:]
        shares = lengths / self._with_margins(parameters.boxes)[:, 2:]
        return self._turned(levels / 255, self._maps(parameters, shares, np.zeros_like(shares)))

    def of_squares(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Views of images, uint8 (n, H, W, 3), none of whose crops is larger than ``size``."""
        extent = np.array(images.shape[1:3])
        levels = images.permute(0, 3, 1, 2).contiguous()
        if not (self.crops or self.rotate or (extent != self.size).any()):
            flip(levels, parameters.flips)
            return levels / 255
        shares = parameters.boxes[:, 2:] / extent
        centres = 2 * parameters.boxes[:, :2] / extent + shares - 1
        maps = self._maps(parameters, shares, centres)
        if self.rotate:
            return self._turned(levels / 255, maps)
        # One of whole pixels is cut out before: beyond the centres of its outermost pixels it goes on as there.
        whole = np.issubdtype(parameters.boxes.dtype, np.integer)
        reach = np.maximum(shares - 1 / extent, 0) if whole else np.full_like(shares, 2)
        grid = torch.empty(len(images), self.size, self.size, 2, device=images.device)
        for place, shape in ((0, (-1, self.size, 1)), (1, (-1, 1, self.size))):
            scale, shift = maps[:, place, place], maps[:, place, 2]
            low, high = centres[:, place] - reach[:, place], centres[:, place] + reach[:, place]
            scale, shift, low, high = on(images.device, np.stack([scale, shift, low, high]).astype(np.float32))[
                ..., None
            ]
            places = torch.clamp(scale * self._axis(images.device) + shift, low, high)
            grid[..., 1 - place] = places.view(shape)  # x before y
        return F.grid_sample(levels / 255, grid, padding_mode="border", align_corners=False)

    def _with_margins(self, boxes: np.ndarray) -> np.ndarray:
        margins = np.ceil(boxes[:, 2:] * ((self._spread - 1) / 2)).astype(np.int64)
        return np.concatenate([boxes[:, :2] - margins, boxes[:, 2:] + 2 * margins], axis=1)

    @cached_property
    def _spread(self) -> float:
        """Side of the square that a square needs to turn in."""
        steepest = math.radians(min(self.rotate, 45))
        return math.cos(steepest) + math.sin(steepest)

    def _turned(self, views: Tensor, maps: np.ndarray) -> Tensor:
        axis, places = self._axis(views.device), on(views.device, maps)[..., None, None]
        grid = places[:, :, 0] * axis[:, None] + places[:, :, 1] * axis + places[:, :, 2]  # (n, 2, size, size) y and x
        views -= self.fill  # so that zeros outside are the fill
        looked_up = F.grid_sample(views, grid.flip(1).permute(0, 2, 3, 1), padding_mode="zeros", align_corners=False)
        return looked_up.add_(self.fill)

    def _axis(self, device: torch.device) -> Tensor:
        """Centres of the pixels of a view that runs from -1 to 1."""
        return (2 * torch.arange(self.size, device=device) + 1) / self.size - 1

    def _maps(self, parameters: Parameters, shares: np.ndarray, centres: np.ndarray) -> np.ndarray:
        """(n, 2, 3) float32 affine maps, in y and x, from a view to an image, both of which run from -1 to 1.

        Args:
            parameters: flips and angles.
            shares: (n, 2) height and width of the crop as shares of the image's.
            centres: (n, 2) its centre.
        """
        angles = np.radians(parameters.angles.astype(np.float64))
        cos, sin = np.cos(angles), np.sin(angles)
        turned = np.stack([np.stack([cos, sin], axis=1), np.stack([-sin, cos], axis=1)], axis=1)
        signs = np.where(parameters.flips, -1.0, 1.0)
        maps = np.concatenate([turned * (signs * shares)[:, :, None], centres[:, :, None]], axis=2)
        return maps.astype(np.float32)
