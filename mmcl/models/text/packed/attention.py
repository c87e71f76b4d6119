"""Attention of texts that are laid end to end."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl.models.text.packed.layout import Block, Layout, fill, strip
from mmcl.runtime.device import has_amx

_BYTES_OF_SCORES = 1024
"""Of one query's scores. Up to here two products and a softmax in the caches take less time than torch's own attention,
1.5 instead of 2.1 microseconds a token at 32 tokens, and half of it in bfloat16 at 256."""
_AMX_BYTES_OF_SCORES = 224
"""The same in bfloat16 with AMX and without a gradient: torch's own attention lays keys and values out for the tiles.
Microseconds a token on one core of a Xeon, 12 heads of width 32, copies included, batched and torch's own: 1.4 and 1.5
at 32 tokens, 1.8 and 1.9 at 64, 4.6 and 3.8 at 128, 8.1 and 4.7 at 256."""


class Attention:
    """Attention of one batch, with the biases of its scores, which layers share.

    Args:
        layout: of the batch.
        heads, key_heads: of queries; and of keys and values.
        causal: whether tokens attend to those before them alone.
        score_bias: from a length L, (heads, L, L) of what is added to scores.
    """

    def __init__(
        self,
        layout: Layout,
        heads: int,
        key_heads: int,
        *,
        causal: bool = False,
        score_bias: Callable[[int], Tensor] | None = None,
    ) -> None:
        self._layout, self._heads, self._key_heads = layout, heads, key_heads
        self._causal, self._score_bias = causal, score_bias
        self._biases: dict[tuple[int, int | None], Tensor] = {}
        self._of_length: dict[int, Tensor] = {}

    def __call__(self, query_key_value: Tensor, window: int | None, dropout: nn.Dropout | None) -> Tensor:
        """(rows, heads · width) attended values.

        Args:
            query_key_value: (rows, (heads + 2 · key heads) · width).
            window: tokens farther away are not attended to.
            dropout: of the weights, if any.
        """
        heads, key_heads, blocks = self._heads, self._key_heads, self._layout.blocks
        parts = []
        for number, (block, rows) in enumerate(zip(blocks, fill(query_key_value, self._layout), strict=True)):
            joined = rows.view(block.texts, block.length, heads + 2 * key_heads, -1)
            query, key, value = joined.transpose(1, 2).split([heads, key_heads, key_heads], 1)
            if key_heads != heads:
                key, value = (part.repeat_interleave(heads // key_heads, 1) for part in (key, value))
            bias = self._bias(number, block, window, joined.dtype)
            if block.length * joined.element_size() > _most_bytes(joined):
                attended = _fused(query, key, value, bias, dropout)
            else:
                attended = _attend(query, key, value, bias, dropout)
            parts.append(attended.transpose(1, 2).reshape(len(rows), -1))
        return strip(parts, self._layout)

    def _bias(self, number: int, block: Block, window: int | None, dtype: torch.dtype) -> Tensor:
        """(texts or 1, heads or 1, L or 1, L) of what is added to the scores of a block."""
        if window is not None and window >= block.length - 1:
            window = None
        if (number, window) not in self._biases:
            hidden = block.padding[:, None, None]
            if self._causal or window is not None:
                places = torch.arange(block.length, device=hidden.device)
                ahead = places - places[:, None]  # of query i, key j stands j - i tokens ahead
                far = ahead > 0 if self._causal else torch.zeros_like(ahead, dtype=torch.bool)
                if window is not None:
                    far = far | (ahead.abs() > window)
                # Padding stands behind a text's tokens, which causal ones do not see in any case.
                hidden = far[None, None] if self._causal else hidden | far
            # Finite, so that rows of padding alone, which nobody reads, have a gradient that is a number; half of the
            # least, since a score is added to it, and float16 would overflow.
            least = torch.finfo(dtype).min / 2
            self._biases[number, window] = torch.where(hidden, least, self._by_place(block.length).to(dtype))
        return self._biases[number, window]

    def _by_place(self, length: int) -> Tensor:
        if self._score_bias is None:
            return torch.zeros(())
        if length not in self._of_length:
            self._of_length[length] = self._score_bias(length)
        return self._of_length[length]


def _most_bytes(states: Tensor) -> int:
    """Of one query's scores, up to which attention is batched."""
    tiles = states.dtype == torch.bfloat16 and states.device.type == "cpu" and has_amx()
    return _AMX_BYTES_OF_SCORES if tiles and not states.requires_grad else _BYTES_OF_SCORES


def _fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: nn.Dropout | None) -> Tensor:
    """What :func:`_attend` does, by torch's own attention: text by text, whose number may decide how it multiplies."""
    rate = dropout.p if dropout is not None and dropout.training else 0.0
    alone = zip(query.split(1), key.split(1), value.split(1), bias.expand(len(query), -1, -1, -1).split(1), strict=True)
    attended = [F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate) for q, k, v, mask in alone]
    return torch.cat(attended) if len(attended) > 1 else attended[0]


def _softmax(scores: Tensor) -> Tensor:
    """Softmax of rows. torch's in bfloat16 takes 32 numbers at a time where there is AVX512, and those that are left
    one by one: at 16 and 48 tokens it takes twice as long as in float32, with the copies to and fro."""
    left = scores.shape[-1] % 32 and scores.dtype == torch.bfloat16 and scores.device.type == "cpu"
    if left and torch.cpu._is_avx512_supported():
        return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
    return scores.softmax(-1)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: nn.Dropout | None) -> Tensor:
    """softmax(query · key / √width + bias) · value: (N, heads, L, width) of the same."""
    texts, heads, length, width = query.shape
    query, key, value = (part.reshape(texts * heads, length, width) for part in (query, key, value))
    alike = bias.shape[:2] == (1, 1)  # then no copy for each text and head is needed
    bias = bias[0] if alike else bias.expand(texts, heads, -1, -1).reshape(texts * heads, -1, length)
    bias = bias.expand(texts * heads, length, length)
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=width**-0.5)
    weights = _softmax(scores)
    weights = weights if dropout is None else dropout(weights)
    return torch.bmm(weights, value).view(texts, heads, length, width)
