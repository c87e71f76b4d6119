"""Gaussian blur of a batch of images, each by its own width."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.data.augment.parameters import on

_BLOCK = 16  # neighbouring pixels that one product gives: few enough that most of its weights are not 0


def blur(images: Tensor, sigmas: np.ndarray) -> None:
    """:func:`gaussian_blur` in place."""
    images.copy_(gaussian_blur(images, sigmas))


def gaussian_blur(images: Tensor, sigmas: np.ndarray) -> Tensor:
    """Float ``images`` (n, C, H, W) blurred with standard deviations ``sigmas`` (n,) in pixels, mirrored at the edge.

    Each kernel is cut off at three times its own width, beyond which torchvision's of any larger size have less than
    0.3%: the two differ by less than a level of 255.
    """
    count, channels, height, width = images.shape
    bands = on(images.device, _bands(sigmas))
    window = bands.shape[2]
    radius = (window - _BLOCK) // 2
    images = _mirrored(images, radius)
    down = images.unfold(2, window, _BLOCK).transpose(3, 4).flatten(1, 2)  # (n, C · H / _BLOCK, window, W)
    images = (bands[:, None] @ down).view(count, channels, -1, images.shape[3])
    across = images.unfold(3, window, _BLOCK).flatten(1, 3)  # (n, C · H · W / _BLOCK, window)
    return (across @ bands.mT).view(count, channels, images.shape[2], -1)[:, :, :height, :width]


def _bands(sigmas: np.ndarray) -> np.ndarray:
    """Weights (n, ``_BLOCK``, window) that the pixels of a window have in each pixel of the block in its middle."""
    radii = np.ceil(3 * sigmas)[:, None, None]
    radius = int(radii.max())
    distances = np.abs(np.arange(_BLOCK + 2 * radius) - radius - np.arange(_BLOCK)[:, None])
    weights = np.exp(-0.5 * (distances / sigmas[:, None, None]) ** 2) * (distances <= radii)
    return (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32)


def _mirrored(images: Tensor, radius: int) -> Tensor:
    """Padded by ``radius``, then to full blocks; an image smaller than that is mirrored as often as it takes."""
    height, width = images.shape[2:]
    below, beside = (radius + -size % _BLOCK for size in (height, width))
    if below < height and beside < width:
        return F.pad(images, (radius, beside, radius, below), mode="reflect")
    for dim, size, after in ((2, height, below), (3, width, beside)):
        places = torch.arange(-radius, size + after, device=images.device).abs() % max(1, 2 * (size - 1))
        images = images.index_select(dim, torch.minimum(places, (2 * (size - 1) - places).abs()))
    return images
