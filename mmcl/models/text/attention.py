"""Attention of transformers' models with a faster dropout. Importing this makes it known there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmcl.models.text.dropout import Dropout

ATTENTION = "sdpa_faster_dropout"


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
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **options)
    scores = (query * (query.shape[-1] ** -0.5 if scaling is None else scaling)) @ key.transpose(2, 3)
    if attention_mask is not None:
        nowhere = torch.full((), torch.finfo(scores.dtype).min, dtype=scores.dtype)
        scores = scores + torch.where(attention_mask, 0.0, nowhere)
    weights = Dropout(dropout)(scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)))
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
