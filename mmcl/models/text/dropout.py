"""Dropout that draws its masks faster on a CPU, also within the attention of transformers' models."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ATTENTION = "sdpa_faster_dropout"
"""What :func:`attention` is called among transformers' kinds of attention."""


class Dropout(nn.Dropout):
    """torch's dropout, but on a CPU the gaps between dropped elements are drawn, rather than a number for each element
    from a generator that makes them one by one: at a rate of 0.1 that takes a tenth of the numbers."""

    def forward(self, input: Tensor) -> Tensor:
        """What is kept of ``input``, scaled so that the expectation stays."""
        drops = self.training and 0.0 < self.p < 1.0
        # A compiled network has dropout as part of other loops, and no sizes that depend on what was drawn.
        if not drops or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        kept: Tensor = _Dropped.apply(input, dropped_places(input.numel(), self.p), 1 / (1 - self.p))
        return kept


def dropped_places(count: int, rate: float) -> Tensor:
    """Ascending places at which ``count`` elements are dropped, each by itself at ``rate``, by torch's generator.

    From one place to the next there are k steps with probability (1 - rate)^(k - 1) · rate, which the logarithm of a
    uniform number gives (Devroye 1986, Non-Uniform Random Variate Generation, X.2).
    """
    mean = count * rate
    draws = round(mean + 8 * math.sqrt(mean)) + 16  # more places are within reach once in 10^15 times
    words = torch.empty(-(-draws // 2), dtype=torch.int64).random_(-(2**63), None)  # two numbers each
    uniform = words.view(torch.int32).float().abs_().mul_(2.0**-31)  # from 0 to 1
    steps = uniform.log_().mul_(1 / math.log1p(-rate)).ceil_().clamp_(1, 2**30)
    places = steps.long().cumsum(0).sub_(1)
    return places[: int(torch.searchsorted(places, count))]


class _Dropped(torch.autograd.Function):
    """Zeros at the given places, all else scaled."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(places)
        ctx.scale = scale
        return _scaled_but_dropped(values, places, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return _scaled_but_dropped(grad, places, ctx.scale), None, None


def _scaled_but_dropped(values: Tensor, places: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """``values`` scaled, with zeros at ``places``, which count elements in their order; contiguous, or in ``out``."""
    out = values.new_empty(values.shape) if out is None else out
    torch.mul(values, scale, out=out).view(-1).index_fill_(0, places, 0.0)
    return out


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
