"""Dropout that draws its masks faster on a CPU, also within the attention of transformers' models."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

_STEPS = 1 << 16
ATTENTION = "sdpa_faster_dropout"
"""What :func:`attention` is called among transformers' kinds of attention."""


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
            _register()
            model.set_attn_implementation(ATTENTION)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention by torch's fused product; but where that would draw a mask on a CPU, it is not fused
    anyway, and the mask is drawn as in :class:`Dropout`.

    Args:
        module: whose attention it is.
        query: (N, heads, L, width), as ``key`` and ``value``.
        key: of what is attended to.
        value: of the same.
        attention_mask: (N, 1, L, L), true where to attend; None for everywhere.
        dropout: rate.
        scaling: of the products.
        is_causal: a token attends to those before it; as the module says if absent.
        options: of other kinds of attention.

    Returns:
        (N, L, heads, width), and no weights.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    plain = not causal and query.shape[1] == key.shape[1] and options.get("position_bias") is None
    masked = attention_mask is None or attention_mask.dtype == torch.bool
    if dropout == 0.0 or query.device.type != "cpu" or not (plain and masked):
        fused: tuple[Tensor, None] = _register()(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **options
        )
        return fused
    scores = (query * (query.shape[-1] ** -0.5 if scaling is None else scaling)) @ key.transpose(2, 3)
    if attention_mask is not None:
        nowhere = torch.full((), torch.finfo(scores.dtype).min, dtype=scores.dtype)
        scores = scores + torch.where(attention_mask, 0.0, nowhere)
    weights = Dropout(dropout)(scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)))
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), None


@cache
def _register() -> Any:
    """Make :func:`attention` known to transformers, whose own attention by the fused product is returned."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    return sdpa_attention_forward
