"""A running average of the weights, which is evaluated and saved in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmcl.runtime.sharding import sharded_like

WARMUP_STEPS = 10


class WeightAverage:
    """Exponential moving average of everything that training changes, running statistics included
    (Polyak & Juditsky 1992; with decay as in Tarvainen & Valpola 2017, arXiv:1703.01780).

    Args:
        module: the module in training.
        names: of its state's tensors to average; those that are not floating point are taken as they are.
        decay: share of the old average that a step keeps. The first steps keep less, so that the start is forgotten.
    """

    def __init__(self, module: nn.Module, names: set[str], decay: float) -> None:
        self._live = live_tensors(module, names)
        self.decay = decay
        self.values: dict[str, Tensor] = {name: tensor.clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step ``step`` (from 1)."""
        keep = min(self.decay, step / (step + WARMUP_STEPS))
        for name, tensor in self._live.items():
            if tensor.is_floating_point():
                self.values[name].lerp_(tensor, 1 - keep)
            else:
                self.values[name].copy_(tensor)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the module holds the average; afterwards its own weights again."""
        with holding(self._live, self.values):
            yield

    def load(self, values: dict[str, Tensor]) -> None:
        """Go on from a saved average. Raises ``KeyError`` if a tensor is missing."""
        for name, tensor in self.values.items():
            tensor.copy_(sharded_like(values[name], tensor))


def live_tensors(module: nn.Module, names: set[str]) -> dict[str, Tensor]:
    """The tensors themselves, by name, that ``module`` computes with."""
    return {name: tensor for name, tensor in module.state_dict().items() if name in names}


@contextmanager
def holding(live: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Within, the ``live`` tensors hold ``values``; afterwards what they held before."""
    own = {name: tensor.clone() for name, tensor in live.items()}
    _copy(live, values)
    try:
        yield
    finally:
        _copy(live, own)


@torch.no_grad()
def _copy(live: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in live.items():
        tensor.copy_(values[name])
