"""Position embeddings learned for one grid of patches, brought to another."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor


def fit_positions(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state``, of a network for images of one size, with its position embeddings for those of another.

    Args:
        state: tensors by name.
        like: those of the same network for the other size.

    Raises:
        ValueError: a tensor has another shape there and is no table of a square grid of positions.
    """
    return {
        name: tensor if name not in like or tensor.shape == like[name].shape else _fitted(name, tensor, like[name])
        for name, tensor in state.items()
    }


def interpolate_positions(table: Tensor, grid: int, prefix: int) -> Tensor:
    """(prefix + grid², D) position embeddings of (prefix + g², D), row by row of the grid: bicubic and antialiased, as
    ``open_clip.model.resize_pos_embed`` does it. The first ``prefix`` are those of tokens without a place, and stay."""
    kept, patches = table[:prefix], table[prefix:]
    side = isqrt(len(patches))
    image = patches.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([kept, image.flatten(2)[0].T.to(table.dtype)])


def _fitted(name: str, table: Tensor, like: Tensor) -> Tensor:
    old, new, width = table.shape[-2], like.shape[-2], table.shape[-1]
    prefix = next(
        (count for count in range(min(old, new)) if _is_square(old - count) and _is_square(new - count)), None
    )
    if prefix is None or width != like.shape[-1] or table.numel() != old * width:
        raise ValueError(f"its {name} is {tuple(table.shape)}, which would have to be {tuple(like.shape)}")
    return interpolate_positions(table.view(old, width), isqrt(new - prefix), prefix).view(like.shape)


def _is_square(number: int) -> bool:
    return isqrt(number) ** 2 == number
