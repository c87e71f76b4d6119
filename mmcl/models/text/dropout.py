"""Dropout that draws its masks faster on a CPU."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

_STEPS = 1 << 16


class Dropout(nn.Dropout):
    """torch's dropout, but on a CPU each element has 16 random bits instead of a number of its own from a generator
    that makes them one by one, which took up to a fifth of a step on bfloat16 matrix units.

    The rate is rounded to a multiple of 2^-16, and what is kept is scaled by just that rate.
    """

    def forward(self, input: Tensor) -> Tensor:
        """What is kept of ``input``, scaled so that the expectation stays."""
        steps = round(self.p * _STEPS)
        if not self.training or input.device.type != "cpu" or steps in (0, _STEPS):
            return super().forward(input)
        words = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: input.numel()].view(input.shape)
        kept = (bits >= steps - _STEPS // 2).view(torch.uint8)  # a product with bytes has vector instructions
        return input * kept * (_STEPS / (_STEPS - steps))


def speed_up_dropout(net: nn.Module) -> None:
    """Put :class:`Dropout` in the place of torch's within ``net``, and into the attention of transformers' models."""
    for parent in net.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                faster = Dropout(child.p)
                faster.training = child.training
                setattr(parent, name, faster)
    # A transformers model may be the network or, as in open_clip's text halves, lie within it.
    for model in (cast(Any, module) for module in net.modules() if hasattr(module, "set_attn_implementation")):
        if getattr(model.config, "_attn_implementation", None) == "sdpa":
            from mmcl.models.text.attention import ATTENTION

            model.set_attn_implementation(ATTENTION)
