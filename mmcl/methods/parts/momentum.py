"""A slow copy of what learns, whose embeddings of one and the same thing hardly differ from step to step."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmcl.methods.parts.state import MethodState
from mmcl.runtime import sharding


class MomentumCopy(MethodState):
    r"""An exponential moving copy of modules: the key encoder of MoCo (He et al. 2020, arXiv:1911.05722, eq. 2), the
    target of BYOL (Grill et al. 2020, arXiv:2006.07733).

    After every optimizer step :math:`θ_k ← m θ_k + (1 - m) θ_q`, for the weights and for running statistics alike. The
    copy stays in evaluation mode: its dropout is off, as in ESimCSE (Wu et al. 2022, arXiv:2109.04380), and its
    statistics are the running ones (EMAN, Cai et al. 2021, arXiv:2101.08482), so that a key depends neither on the
    other rows of its batch, nor on how the batch is split over micro-batches and processes.

    What is frozen is not copied but shared.

    Args:
        parts: name to each module to follow.
        momentum: m in [0, 1); 0 is the modules as they are.

    Raises:
        ValueError: ``momentum`` is out of its range.
    """

    def __init__(self, parts: Mapping[str, nn.Module], momentum: float) -> None:
        super().__init__()
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must be in [0, 1), not {momentum}")
        self.momentum = momentum
        source = nn.ModuleDict(dict(parts))
        self._source = (source,)  # a tuple: nn.Module does not look into it, and takes nothing for a part of the copy
        frozen: dict[int, Any] = {id(p): p for p in source.parameters() if not p.requires_grad}
        self.parts = copy.deepcopy(source, frozen).requires_grad_(False)
        self.train(False)

    def forward(self, part: str, *args: Any, **kwargs: Any) -> Tensor:
        """What the copy of ``part`` makes of the rest; no gradient flows back."""
        with torch.no_grad():
            return self.parts[part](*args, **kwargs)

    def train(self, mode: bool = True) -> MomentumCopy:
        """Nothing: a copy stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self) -> None:
        """One step after what is followed."""
        (source,) = self._source
        sharding.reshard(self.parts)
        own = dict(self.parts.named_parameters())
        for name, parameter in source.named_parameters():
            if parameter.requires_grad:
                own[name].lerp_(parameter, 1 - self.momentum)
        kept, statistics = source.state_dict(keep_vars=True), dict(self.parts.named_buffers())
        for name, buffer in source.named_buffers():
            if name not in kept:  # a constant, of which some are infinite
                continue
            if buffer.is_floating_point():
                statistics[name].lerp_(buffer, 1 - self.momentum)
            else:
                statistics[name].copy_(buffer)

    def module_pairs(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Every module that is followed, with its copy."""
        (source,) = self._source
        return zip(source.modules(), self.parts.modules(), strict=True)

    def checkpointed(self) -> set[str]:
        """All but what is frozen."""
        (source,) = self._source
        still = {f"parts.{n}" for n, p in source.named_parameters(remove_duplicate=False) if not p.requires_grad}
        return set(self.state_dict()) - still
