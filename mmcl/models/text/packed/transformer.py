"""A transformer on texts laid end to end: no padding, one matrix product for query, key and value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl.models.text.packed.attention import Attention
from mmcl.models.text.packed.description import Description, LayerDescription, Rotary
from mmcl.models.text.packed.families import describe
from mmcl.models.text.packed.layout import Layout, lay_out
from mmcl.runtime.products import PackedLinear, linear

Function = Callable[[Tensor], Tensor]


class Weights(Protocol):
    """What a network's weights are made into: copies for inference, or the network's own with their gradient."""

    def linear(self, layers: Sequence[nn.Linear], activation: nn.Module | None) -> Function:
        """The outputs of all layers beside each other, activated."""

    def parameter(self, values: Tensor) -> Tensor:
        """A weight of a norm."""


class InferenceWeights:
    """Weights in ``dtype``, laid out once for the products. float32 ones are shared with the network where the library
    of the products takes them as they are.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def linear(self, layers: Sequence[nn.Linear], activation: nn.Module | None) -> Function:
        weight, bias = joined_parameters(layers)
        name = fused_activation(activation)
        product = PackedLinear(self.parameter(weight), None if bias is None else self.parameter(bias), name)
        if activation is None or name is not None:
            return product
        return lambda states: activation(product(states))

    def parameter(self, values: Tensor) -> Tensor:
        return values.detach().to(self._dtype)


class LiveWeights:
    """The network's own weights with their gradient, cast to ``dtype`` once."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def linear(self, layers: Sequence[nn.Linear], activation: nn.Module | None) -> Function:
        weight = torch.cat([self.parameter(layer.weight) for layer in layers])
        biases = [self.parameter(layer.bias) for layer in layers if layer.bias is not None]
        bias = torch.cat(biases) if biases else None
        if activation is None:
            return lambda states: linear(states, weight, bias)
        return lambda states: activation(linear(states, weight, bias))

    def parameter(self, values: Tensor) -> Tensor:
        return values.to(self._dtype)


_FUSED = {
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "ReLU": "relu",
    "SiLUActivation": "silu",
    "SiLU": "silu",
}
"""transformers' activations that can be part of a product."""


def fused_activation(activation: nn.Module | None) -> str | None:
    """What :class:`mmcl.runtime.products.PackedLinear` calls an activation that can be part of a product."""
    return _FUSED.get(type(activation).__name__)


def joined_parameters(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of one linear layer with the outputs of all of ``layers`` beside each other."""
    weight = layers[0].weight if len(layers) == 1 else torch.cat([layer.weight for layer in layers])
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    return weight.detach(), torch.cat(biases).detach() if biases else None


class _Layer(NamedTuple):
    """One layer's functions."""

    description: LayerDescription
    query_key_value: Function
    query_norm: Function | None
    key_norm: Function | None
    attended: Function
    attention_norm: Function
    up: Function
    down: Function
    feed_forward_norm: Function


class PackedTransformer:
    """The token states of a transformer, computed from the tokens of all texts of a batch in one (T, W) matrix.

    Every product but attention's is of independent rows, so texts need not be padded to a common length for it. What a
    text gives does not depend on the texts beside it.

    Args:
        net: a model that :func:`mmcl.models.text.packed.families.describe` describes.
        weights: what its weights are made into.
        dtype: of the states; softmax and normalisation accumulate in float32 in any case.
    """

    def __init__(self, net: Any, weights: Weights, dtype: torch.dtype) -> None:
        described = describe(net)
        if described is None:
            raise ValueError(f"a {type(net).__name__} does not run packed")
        self._described: Description = described
        self._dtype = dtype
        self._embeddings_norm = _norm(described.embeddings_norm, _wide)
        self._final_norm = _norm(described.final_norm, weights.parameter)
        self._layers = [_layer(layer, weights) for layer in described.layers]

    def __call__(
        self, tokens: Sequence[np.ndarray], all_layers: bool = False
    ) -> tuple[list[Tensor], list[tuple[int, int]]]:
        """States of tokens.

        Args:
            tokens: the ids of each text; those of equal length beside each other.
            all_layers: keep the states of every layer, the embeddings first, instead of the last alone.

        Returns:
            The (T, W) states of each layer kept, tokens in the order given; and the runs of texts of equal length: how
            many texts, and how many tokens each of them has.
        """
        described = self._described
        lengths = [len(ids) for ids in tokens]
        layout = lay_out(lengths, described.heads, described.words.weight.device, self._dtype)
        attention = Attention(
            layout,
            described.heads,
            described.key_heads,
            causal=described.causal,
            score_bias=described.score_bias,
        )
        turns = self._turns(lengths, layout)
        layers = [self._embed(tokens, layout)]
        for layer in self._layers:
            states = self._through(layer, layers[-1], attention, turns.get(layer.description.rotary))
            layers = [*layers, states] if all_layers else [states]
        layers[-1] = self._final_norm(layers[-1])
        return [states[: layout.tokens] for states in layers], _runs(lengths)

    def _embed(self, tokens: Sequence[np.ndarray], layout: Layout) -> Tensor:
        """(rows, W) of the tokens' embeddings, summed and normalised in float32."""
        described = self._described
        states = _wide(_looked_up(described.words, _rows(np.concatenate(tokens), layout, described.words)))
        if described.kinds is not None:
            states = states.add_(described.kinds.weight[0])
        if described.positions is not None:
            places = _rows(self._places(tokens), layout, described.words)
            states = states.add_(_looked_up(described.positions, places))
        states = self._embeddings_norm(states).to(self._dtype)
        return _dropped(described.embeddings_dropout, states)

    def _places(self, tokens: Sequence[np.ndarray]) -> np.ndarray:
        padding = self._described.position_padding
        if padding is None:
            return np.concatenate([np.arange(len(ids)) for ids in tokens])
        real = [ids != padding for ids in tokens]  # a text may itself hold the padding token, which has no place
        return np.concatenate([np.cumsum(each) * each for each in real]) + padding

    def _turns(self, lengths: Sequence[int], layout: Layout) -> dict[Rotary | None, tuple[Tensor, Tensor]]:
        """(rows, 1, half a head) cosines and sines of each kind of rotary positions."""
        kinds = {layer.description.rotary for layer in self._layers} - {None}
        if not kinds:
            return {}
        places = _rows(np.concatenate([np.arange(length) for length in lengths]), layout, self._described.words)
        positions = torch.arange(layout.longest, device=places.device)[None]
        of_type = torch.empty(0, device=places.device)
        turns: dict[Rotary | None, tuple[Tensor, Tensor]] = {}
        for rotary in kinds:
            assert rotary is not None
            tables = rotary(of_type, positions)
            cosines, sines = (table[0, :, : table.shape[-1] // 2].index_select(0, places) for table in tables)
            turns[rotary] = cosines[:, None], sines[:, None]
        return turns

    def _through(
        self, layer: _Layer, states: Tensor, attention: Attention, turn: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        first = self._described.norm_first
        joined = layer.query_key_value(layer.attention_norm(states) if first else states)
        if turn is not None:
            joined = self._turned(layer, joined, turn)
        attended = layer.attended(attention(joined, layer.description.window, layer.description.weights_dropout))
        attended = _dropped(layer.description.attended_dropout, attended).add_(states)
        states = attended if first else layer.attention_norm(attended)
        inner = layer.up(layer.feed_forward_norm(states) if first else states)
        if layer.description.gated:
            activated, gate = inner.chunk(2, -1)
            inner = layer.description.activation(activated) * gate
        down = _dropped(layer.description.down_dropout, layer.down(inner)).add_(states)
        return down if first else layer.feed_forward_norm(down)

    def _turned(self, layer: _Layer, joined: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """Queries and keys normalised and turned by their positions, values as they are."""
        described = self._described
        heads = joined.view(len(joined), -1, described.head_width)
        query, key, value = heads.split([described.heads, described.key_heads, described.key_heads], 1)
        query = query if layer.query_norm is None else layer.query_norm(query)
        key = key if layer.key_norm is None else layer.key_norm(key)
        return torch.cat([_turn(query, *turn), _turn(key, *turn), value], 1).flatten(1)


def _layer(described: LayerDescription, weights: Weights) -> _Layer:
    fused = None if described.gated else described.activation
    return _Layer(
        description=described,
        query_key_value=weights.linear(described.query_key_value, None),
        query_norm=None if described.query_norm is None else _norm(described.query_norm, weights.parameter),
        key_norm=None if described.key_norm is None else _norm(described.key_norm, weights.parameter),
        attended=weights.linear([described.attended], None),
        attention_norm=_norm(described.attention_norm, weights.parameter),
        up=weights.linear(described.up, fused),
        down=weights.linear([described.down], None),
        feed_forward_norm=_norm(described.feed_forward_norm, weights.parameter),
    )


def _norm(module: Any, parameter: Function) -> Function:
    """A norm as a function, with its weights as ``parameter`` makes them; the identity where there is none."""
    if module is None or isinstance(module, nn.Identity):
        return lambda states: states
    weight = parameter(module.weight)
    if isinstance(module, nn.LayerNorm):
        bias = None if module.bias is None else parameter(module.bias)
        return lambda states: F.layer_norm(states, weight.shape, weight, bias, module.eps)
    return lambda states: F.rms_norm(states, weight.shape, weight, module.variance_epsilon)


def _looked_up(table: nn.Embedding, rows: Tensor) -> Tensor:
    """Rows of a table; that of padding has no gradient, wherever it stands."""
    return F.embedding(rows, table.weight, table.padding_idx)


def _dropped(dropout: nn.Module | None, states: Tensor) -> Tensor:
    return states if dropout is None else cast(Tensor, dropout(states))


def _wide(states: Tensor) -> Tensor:
    return states.to(torch.promote_types(states.dtype, torch.float32))


def _turn(states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """(T, heads, width) rotary positions (Su et al. 2021, arXiv:2104.09864), in float32."""
    left, right = states.float().chunk(2, -1)
    return torch.cat([left * cosines - right * sines, right * cosines + left * sines], -1).to(states.dtype)


def _rows(values: np.ndarray, layout: Layout, words: nn.Embedding) -> Tensor:
    """One number a row of the batch, unused ones 0."""
    filled = np.zeros(layout.rows, dtype=np.int64)
    filled[: layout.tokens] = values
    return torch.from_numpy(filled).to(words.weight.device)


def _runs(lengths: Sequence[int]) -> list[tuple[int, int]]:
    counts = np.array(lengths)
    starts = np.flatnonzero(np.diff(counts, prepend=-1))
    return list(zip(np.diff(starts, append=len(counts)).tolist(), counts[starts].tolist(), strict=True))
