"""How a transformer computes, in the modules that hold its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

Rotary = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(1, L, head width) cosines and sines, of a tensor of their type and (1, L) positions."""


class LayerDescription(NamedTuple):
    """One layer: attention, then two linear layers with an activation between them, each with a residual and a norm.

    Attributes:
        query_key_value: one linear layer of all three, or one of each.
        query_norm, key_norm: of each head, if any.
        attended: the linear layer behind attention.
        attention_norm, feed_forward_norm: before what they are named after, or behind the residual.
        up: of the feed-forward network; two, or one of twice the width, where the activated half is multiplied by the
            other.
        activation: of the feed-forward network.
        gated: whether it has these halves.
        down: the last linear layer.
        window: tokens farther away than so many are not attended to; None: all are.
        rotary: turns queries and keys by their positions.
        weights_dropout, attended_dropout, down_dropout: in training, of attention's weights and behind the layers that
            they are named after, if any.
    """

    query_key_value: Sequence[nn.Linear]
    attended: nn.Linear
    attention_norm: nn.Module
    up: Sequence[nn.Linear]
    activation: nn.Module
    down: nn.Linear
    feed_forward_norm: nn.Module
    gated: bool = False
    query_norm: nn.Module | None = None
    key_norm: nn.Module | None = None
    window: int | None = None
    rotary: Rotary | None = None
    weights_dropout: nn.Dropout | None = None
    attended_dropout: nn.Dropout | None = None
    down_dropout: nn.Dropout | None = None


class Description(NamedTuple):
    """A transformer.

    Attributes:
        words: the table of tokens.
        layers: in their order.
        heads, key_heads: of queries; and of keys and values, each of which serves several of those.
        head_width: numbers a head.
        norm_first: whether norms stand before attention and feed-forward network rather than behind the residual.
        positions: the table of positions, if there is one.
        position_padding: a token that has no place, and behind whose number positions count; None: they count from 0.
        kinds: the table of token types, of which a text alone has the first.
        embeddings_norm, final_norm: of what enters the first layer, and of what leaves the last.
        embeddings_dropout: behind the former, in training, if any.
        causal: whether tokens attend to those before them alone.
        score_bias: from a length L, (heads, L, L) of what is added to the scores of queries and keys.
    """

    words: nn.Embedding
    layers: Sequence[LayerDescription]
    heads: int
    key_heads: int
    head_width: int
    norm_first: bool
    positions: nn.Embedding | None = None
    position_padding: int | None = None
    kinds: nn.Embedding | None = None
    embeddings_norm: nn.Module | None = None
    final_norm: nn.Module | None = None
    embeddings_dropout: nn.Dropout | None = None
    causal: bool = False
    score_bias: Callable[[int], Tensor] | None = None
