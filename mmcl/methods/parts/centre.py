"""A running mean of outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.methods.parts.state import MethodState


class Centre(MethodState):
    r"""The exponential moving mean of outputs, c ← m c + (1 - m) mean (DINO, Caron et al. 2021, arXiv:2104.14294, eq.
    4), 0 at the start.

    Args:
        dim: K of the outputs.
        momentum: m in [0, 1).

    Attributes:
        value: (K,)
    """

    value: Tensor

    def __init__(self, dim: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(dim))

    @torch.no_grad()
    def update(self, outputs: Tensor) -> None:
        """One step towards the mean of (N, K) outputs of the global batch."""
        self.value.lerp_(outputs.mean(dim=0).to(self.value.dtype), 1 - self.momentum)
