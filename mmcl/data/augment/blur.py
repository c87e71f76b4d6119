"""Gaussian blur of a batch of images, each by its own width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def blur(images: Tensor, sigmas: Tensor) -> None:
    """:func:`gaussian_blur` in place."""
    images.copy_(gaussian_blur(images, sigmas))


def gaussian_blur(images: Tensor, sigmas: Tensor) -> Tensor:
    """Float ``images`` (n, C, H, W) blurred with standard deviations ``sigmas`` (n,) in pixels, mirrored at the edge.

    Each kernel is cut off at three times its own width, beyond which torchvision's of any larger size have less than
    0.3%: the two differ by less than a level of 255.
    """
    radii = (3 * sigmas).ceil()
    radius = int(radii.max())
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    logits = -0.5 * (offsets / sigmas[:, None]) ** 2
    weights = torch.softmax(logits.masked_fill(offsets.abs() > radii[:, None], -torch.inf), dim=1)
    for dim in (2, 3):
        images = _weighted(images, weights[:, radius:], dim)
    return images


def _weighted(images: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Sums of each pixel and its neighbours along ``dim``, with ``weights`` (n, 1 + radius) by their distance.

    By shifted copies: on a CPU they take less time than depthwise convolutions, and no sample meets another's weights.
    """
    size, radius = images.shape[dim], weights.shape[1] - 1
    padded = _mirrored(images, radius, dim)
    by_distance = weights.T[:, :, None, None, None]
    total = images * by_distance[0]
    for distance in range(1, radius + 1):
        pair = padded.narrow(dim, radius - distance, size) + padded.narrow(dim, radius + distance, size)
        total.addcmul_(pair, by_distance[distance])
    return total


def _mirrored(images: Tensor, radius: int, dim: int) -> Tensor:
    """Padded along ``dim``; an image smaller than the padding is mirrored as often as it takes."""
    size = images.shape[dim]
    if radius < size:
        return F.pad(images, (0, 0, radius, radius) if dim == 2 else (radius, radius, 0, 0), mode="reflect")
    places = torch.arange(-radius, size + radius, device=images.device).abs() % max(1, 2 * (size - 1))
    return images.index_select(dim, torch.minimum(places, (2 * (size - 1) - places).abs()))
