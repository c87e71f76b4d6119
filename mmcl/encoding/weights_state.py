"""Whether what was prepared of a module's weights still is of them."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import chain

from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

_optimizer_steps = 0  # in this process


def _count_step(*_: object) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


register_optimizer_step_post_hook(_count_step)  # a fused optimizer leaves the versions of the weights as they were


def weights_state(module: nn.Module) -> Hashable:
    """Changes with every step of an optimizer, and with loading, moving and replacing weights."""
    weights = [
        (weight.data_ptr(), weight.dtype, 0 if weight.is_inference() else weight._version)
        for weight in chain(module.parameters(), module.buffers())
    ]
    return _optimizer_steps, tuple(weights)
