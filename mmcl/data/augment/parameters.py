"""How each sample of a batch is changed: drawn from its seed, distributed as by torchvision's transforms."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from mmcl.config.data import ImageChangesConfig
from mmcl.data.augment.random_crop import CROP_DRAWS, boxes_within_squares, central_squares, crop_boxes, rounded_boxes
from mmcl.data.identity import uniforms

# What each number of a sample decides. New changes take further numbers: the others are drawn as before.
_FLIP, _ANGLE, _JITTERED, _FACTORS, _GREY, _BLURRED, _SIGMA = 4, 5, 6, slice(7, 11), 11, 12, 13
_CROP = [2, 3, 0, 1, *range(14, 12 + CROP_DRAWS)]  # place in x and y, then area and ratio of each attempt
_FLIP_VERTICAL, _ORDER, _SOLARISED, _DRAWS = 12 + CROP_DRAWS, 13 + CROP_DRAWS, 14 + CROP_DRAWS, 15 + CROP_DRAWS

NEUTRAL = np.array([1.0, 1.0, 1.0, 0.0], dtype=np.float32)
"""Factors of brightness, contrast and saturation and the shift of hue that change nothing."""
_ORDERS = np.array(list(itertools.permutations(range(4))))


@dataclass(frozen=True)
class Parameters:
    """How N samples are changed, in this order.

    Attributes:
        boxes: (N, 4) top, left, height and width of the crop, in pixels: int64 of originals, float64 of squares.
        flips: (N, 2) top and bottom, left and right are exchanged.
        angles: (N,) degrees of the rotation, counterclockwise.
        orders: (N, 4) in which order brightness (0), contrast (1), saturation (2) and hue (3) are changed.
        factors: (N, 4) by how much; ``NEUTRAL`` where they are not.
        grey: (N,) colour is dropped.
        sigmas: (N,) standard deviation of the blur in pixels; 0 for none.
        solarised: (N,) levels from a half on are inverted.
    """

    boxes: np.ndarray
    flips: np.ndarray
    angles: np.ndarray
    orders: np.ndarray
    factors: np.ndarray
    grey: np.ndarray
    sigmas: np.ndarray
    solarised: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, samples: np.ndarray | slice) -> Parameters:
        """Those of some samples."""
        return Parameters(*(getattr(self, field.name)[samples] for field in fields(self)))

    def rounded(self, sizes: Tensor) -> Parameters:
        """The same with crops of whole pixels of images of ``sizes`` (N, 2)."""
        return replace(self, boxes=rounded_boxes(torch.from_numpy(self.boxes), sizes).numpy())


def draw_parameters(
    config: ImageChangesConfig, sizes: Tensor, seeds: Tensor, draw: int, *, within_squares: bool = False
) -> Parameters:
    """The parameters of N samples.

    Args:
        config: what is changed, how often and how much.
        sizes: (N, 2) int64 heights and widths of the images.
        seeds: (N,) int64.
        draw: number of the view; another one gives other parameters.
        within_squares: the images are squares that were made before. Their crops are not drawn as torchvision's:
            they begin and end anywhere in a pixel, their area is uniform in ``crop_scale``, and the aspect ratio
            log-uniform in that part of ``crop_ratio`` which fits into the image.
    """
    # On a CPU, so that a row is changed alike on every device.
    numbers = uniforms(seeds.cpu(), _DRAWS, draw)
    if within_squares:
        boxes = boxes_within_squares(sizes, config.crop_scale, config.crop_ratio, numbers)
    elif config.crops:
        boxes = crop_boxes(sizes, config.crop_scale, config.crop_ratio, numbers[:, _CROP])
    else:
        boxes = central_squares(sizes)
    drawn = numbers.numpy()
    spread = np.array([config.brightness, config.contrast, config.saturation, config.hue], dtype=np.float32)
    low, high = np.maximum(NEUTRAL - spread, [0, 0, 0, -1]), NEUTRAL + spread
    jittered = drawn[:, _JITTERED, None] < config.jitter_prob
    sigma_low, sigma_high = config.blur_sigma
    return Parameters(
        boxes=boxes.numpy(),
        flips=drawn[:, [_FLIP_VERTICAL, _FLIP]] < [config.flip_vertical, config.flip],
        angles=config.rotate * (2 * drawn[:, _ANGLE] - 1),
        orders=_ORDERS[(drawn[:, _ORDER] * len(_ORDERS)).astype(np.int64)],
        factors=np.where(jittered, low + (high - low) * drawn[:, _FACTORS], NEUTRAL).astype(np.float32),
        grey=drawn[:, _GREY] < config.greyscale,
        sigmas=np.where(
            drawn[:, _BLURRED] < config.blur, sigma_low + (sigma_high - sigma_low) * drawn[:, _SIGMA], 0
        ).astype(np.float32),
        solarised=drawn[:, _SOLARISED] < config.solarise,
    )


def row_by_row(draws: Sequence[Parameters]) -> Parameters:
    """Several draws of N samples as N·count, all of the first sample before those of the next."""
    if len(draws) == 1:
        return draws[0]
    joined = ([getattr(draw, field.name) for draw in draws] for field in fields(Parameters))
    return Parameters(*(np.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:]) for parts in joined))


def on(device: torch.device, values: np.ndarray) -> Tensor:
    """Parameters as a tensor."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)
