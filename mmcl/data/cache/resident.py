"""Decoded images kept in the memory of the device that trains on them, so that no batch of them is copied there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcl.data.cache.pixels import Pixels

_SHARE = 0.25  # of the memory that is free: the rest is for activations and optimizer
_BLOCK = 1024  # images copied at a time


class ResidentPixels:
    """The images of several sources, all squares of one size or all originals, on a device.

    Args:
        parts: the images of each source, stored on disk.
        device: where they go.

    Attributes:
        originals: whether they are originals.
        bytes: that they take.
    """

    def __init__(self, parts: Sequence[Pixels[Any]], device: torch.device) -> None:
        sizes = np.concatenate([part.sizes for part in parts]).astype(np.int64)
        self.originals = isinstance(parts[0].take([]), list)
        self.bytes = needed(parts)
        self._sizes = torch.from_numpy(sizes)
        self._ends = sizes.prod(axis=1).cumsum()
        self._pixels = torch.empty(self.bytes // 3, 3, dtype=torch.uint8, device=device)
        at = 0
        for part in parts:
            for start in range(0, len(part), _BLOCK):
                for image in part.take(range(start, min(start + _BLOCK, len(part)))):
                    levels = torch.tensor(image.reshape(-1, 3))
                    self._pixels[at : at + len(levels)] = levels
                    at += len(levels)

    def inputs(self, items: np.ndarray) -> dict[str, Tensor]:
        """Those numbered ``items`` (n,) through the sources, as a batch has them."""
        if not self.originals:
            side = int(self._sizes[0, 0]) if len(self._sizes) else 0
            squares = self._pixels.view(-1, side, side, 3)
            return {"pixels": squares[torch.from_numpy(items).to(squares.device)]}
        sizes, ends = self._sizes[torch.from_numpy(items)], self._ends[items].tolist()
        parts = [self._pixels[end - length : end] for end, length in zip(ends, sizes.prod(dim=1).tolist(), strict=True)]
        return {"sizes": sizes, "packed": torch.cat(parts)}


def needed(parts: Sequence[Pixels[Any]]) -> int:
    """Bytes of all images."""
    return 3 * sum(int(part.sizes.prod(axis=1, dtype=np.int64).sum()) for part in parts)


def fits(parts: Sequence[Pixels[Any]], device: torch.device) -> bool:
    """Whether the images are on disk and take no more than a quarter of the free memory of a CUDA device."""
    if device.type != "cuda" or not all(part.stored for part in parts):
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return needed(parts) <= _SHARE * free
