"""Images of any shape as patches in reading order, as towers read them that keep an image's aspect ratio (NaViT,
Dehghani et al. 2023, arXiv:2307.06304; the NaFlex variant of SigLIP 2, Tschannen et al. 2025, arXiv:2502.14786)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_PRECISION = 1e-5  # of the scale that is searched for, by bisection, as in SigLIP 2's image processor


def patch_grid(height: int, width: int, patch: int, most: int) -> tuple[int, int]:
    """Rows and columns of patches of an image: of its sides, scaled up or down alike and rounded up to entire patches,
    the largest with at most ``most`` patches."""

    def grid(scale: float) -> tuple[int, int]:
        rows, columns = (max(1, math.ceil(side * scale / patch)) for side in (height, width))
        return rows, columns

    low, high = _PRECISION / 10, 100.0
    while high - low >= _PRECISION:
        scale = (low + high) / 2
        low, high = (scale, high) if math.prod(grid(scale)) <= most else (low, scale)
    return grid(low)


def patch_inputs(images: Sequence[np.ndarray], patch: int, most: int) -> dict[str, Tensor]:
    """``patches`` and ``grid`` of images (H, W, 3) whose sides are multiples of ``patch``, see
    :mod:`mmcl.data.batches.inputs`."""
    patches = np.zeros((len(images), most, 3 * patch**2), dtype=np.uint8)
    grid = np.array([(len(image) // patch, image.shape[1] // patch) for image in images], dtype=np.int64)
    for place, (image, (rows, columns)) in enumerate(zip(images, grid.reshape(-1, 2), strict=True)):
        tiles = image.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 1, 3, 4)
        patches[place, : rows * columns] = tiles.reshape(rows * columns, -1)
    return {"patches": torch.from_numpy(patches), "grid": torch.from_numpy(grid.reshape(-1, 2))}


def square_patches(pixels: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """The same of squares (N, S, S, 3) of any type: patches (N, S² / patch², 3 · patch²), and their grid (N, 2)."""
    count, side = len(pixels), pixels.shape[1] // patch
    tiles = pixels[:, : side * patch, : side * patch].unflatten(2, (side, patch)).unflatten(1, (side, patch))
    patches = tiles.permute(0, 1, 3, 2, 4, 5).reshape(count, side * side, -1)
    return patches, torch.full((count, 2), side, device=pixels.device)


def images_of_patches(patches: Tensor, grid: Tensor) -> list[np.ndarray]:
    """Each image (H, W, 3) of what :func:`patch_inputs` gave."""
    patch = math.isqrt(patches.shape[2] // 3)
    images = []
    for own, (rows, columns) in zip(patches.cpu().numpy(), grid.tolist(), strict=True):
        tiles = own[: rows * columns].reshape(rows, columns, patch, patch, 3).transpose(0, 2, 1, 3, 4)
        images.append(tiles.reshape(rows * patch, columns * patch, 3))
    return images
