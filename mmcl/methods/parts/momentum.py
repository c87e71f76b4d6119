"""A slow copy of what learns, whose embeddings of one and the same thing hardly differ from step to step."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmcl.methods.parts.state import MethodState
from mmcl.runtime import sharding


class MomentumCopy(MethodState):
    r"""An exponential moving copy of modules: the key encoder of MoCo (He et al. 2020, arXiv:1911.05722, eq. 2), the
    target of BYOL (Grill et al. 2020, arXiv:2006.07733).

    After every optimizer step :math:`θ_k ← m θ_k + (1 - m) θ_q`. The copy stays in evaluation mode: its dropout is off,
    as in ESimCSE (Wu et al. 2022, arXiv:2109.04380). Of batch normalisation there are two kinds. With ``running``
    statistics, which follow as the weights do (EMAN, Cai et al. 2021, arXiv:2101.08482), a key depends neither on the
    other rows of its batch, nor on how the batch is split over micro-batches and processes. With those of the
    ``batch``, as in BYOL, a layer in training takes what it is given, as the one that it follows.

    What is frozen is not copied but shared.

    Args:
        parts: name to each module to follow.
        momentum: m in [0, 1); 0 is the modules as they are.
        statistics: of batch normalisation, ``running`` or ``batch``.

    Raises:
        ValueError: ``momentum`` is out of its range.
    """

    def __init__(
        self, parts: Mapping[str, nn.Module], momentum: float, statistics: Literal["running", "batch"] = "running"
    ) -> None:
        super().__init__()
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must be in [0, 1), not {momentum}")
        self.momentum, self.statistics = momentum, statistics
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
        """Evaluation mode, but for batch normalisation that takes the statistics of its batch."""
        super().train(False)
        if self.statistics == "batch":
            for module, follower in self.module_pairs():
                if isinstance(follower, _BatchNorm):
                    follower.training = mode and module.training
        return self

    @torch.no_grad()
    def update(self, momentum: float | None = None) -> None:
        """One step after what is followed.

        Args:
            momentum: m of this step, in [0, 1]; that of the copy if absent.
        """
        momentum = self.momentum if momentum is None else momentum
        (source,) = self._source
        sharding.reshard(self.parts)
        own = dict(self.parts.named_parameters())
        for name, parameter in source.named_parameters():
            if parameter.requires_grad:
                own[name].lerp_(parameter, 1 - momentum)
        if self.statistics == "batch":
            return
        kept, statistics = source.state_dict(keep_vars=True), dict(self.parts.named_buffers())
        for name, buffer in source.named_buffers():
            if name not in kept:  # a constant, of which some are infinite
                continue
            if buffer.is_floating_point():
                statistics[name].lerp_(buffer, 1 - momentum)
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
