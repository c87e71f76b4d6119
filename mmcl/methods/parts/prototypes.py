"""Learned cluster centres."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prototypes(nn.Module):
    """K unit vectors, whose inner products with unit vectors are scores (SwAV, Caron et al. 2020, arXiv:2006.09882).

    Args:
        dim: D of the vectors.
        count: K.
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, dim), dim=1))

    def forward(self, vectors: Tensor) -> Tensor:
        """(…, K) scores of (…, D) unit vectors."""
        return F.linear(vectors, self.weight)

    @torch.no_grad()
    def normalise(self) -> None:
        """Bring them back to unit length, from which an update has moved them."""
        self.weight.copy_(F.normalize(self.weight, dim=1))
