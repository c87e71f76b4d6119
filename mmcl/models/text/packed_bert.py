"""BERT and its kin on texts laid end to end: no padding, one matrix product for query, key and value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FROM_ZERO = ("BertModel",)
_FROM_PADDING = ("RobertaModel", "XLMRobertaModel", "CamembertModel")  # positions count from behind the padding's id


class _Layer(NamedTuple):
    """One transformer layer's weights, (output, input) each with its bias."""

    qkv: tuple[Tensor, Tensor]
    attended: tuple[Tensor, Tensor]
    attended_norm: tuple[Tensor, Tensor, float]
    up: tuple[Tensor, Tensor]
    activation: nn.Module
    down: tuple[Tensor, Tensor]
    norm: tuple[Tensor, Tensor, float]


class PackedBert:
    """The token states of a transformers BERT, computed from the tokens of all texts of a batch in one (T, W) matrix.

    Every product but attention's is of independent rows, so texts need not be padded to a common length for it; and
    attention takes texts of equal length together, without a mask. float32 weights are shared with the net, but for
    the joined query, key and value; in another dtype all of them are copies.

    Args:
        net: a model for which :func:`packs` holds.
        dtype: of the products; softmax and normalisation accumulate in float32 in any case.
    """

    def __init__(self, net: Any, dtype: torch.dtype) -> None:
        def pair(linear: nn.Linear) -> tuple[Tensor, Tensor]:
            return linear.weight.detach().to(dtype), linear.bias.detach().to(dtype)

        def norm(layer: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
            return layer.weight.detach().to(dtype), layer.bias.detach().to(dtype), layer.eps

        embeddings = net.embeddings
        self._heads = int(net.config.num_attention_heads)
        self._padding = int(embeddings.padding_idx) if type(net).__name__ in _FROM_PADDING else None
        self._words = embeddings.word_embeddings.weight.detach().to(dtype)
        places, kinds = embeddings.position_embeddings.weight, embeddings.token_type_embeddings.weight
        self._positions = (places + kinds[0]).detach().to(dtype)  # a text alone is all of the first kind
        self._embeddings_norm = norm(embeddings.LayerNorm)
        self._layers = []
        for layer in net.encoder.layer:
            three = [getattr(layer.attention.self, name) for name in ("query", "key", "value")]
            joined = (torch.cat([pair(one)[part] for one in three]) for part in (0, 1))
            attended, up, down = layer.attention.output, layer.intermediate, layer.output
            self._layers.append(
                _Layer(
                    qkv=(next(joined), next(joined)),
                    attended=pair(attended.dense),
                    attended_norm=norm(attended.LayerNorm),
                    up=pair(up.dense),
                    activation=up.intermediate_act_fn,
                    down=pair(down.dense),
                    norm=norm(down.LayerNorm),
                )
            )

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
        lengths = np.array([len(ids) for ids in tokens])
        starts = np.flatnonzero(np.diff(lengths, prepend=-1))
        runs = list(zip(np.diff(starts, append=len(lengths)).tolist(), lengths[starts].tolist(), strict=True))
        device = self._words.device
        ids, places = torch.from_numpy(np.concatenate(tokens)), torch.from_numpy(self._places(tokens))
        states = F.embedding(ids.to(device), self._words).add_(F.embedding(places.to(device), self._positions))
        layers = [_norm(states, self._embeddings_norm)]
        for layer in self._layers:
            states = self._through(layer, layers[-1], runs)
            layers = [*layers, states] if all_layers else [states]
        return layers, runs

    def _places(self, tokens: Sequence[np.ndarray]) -> np.ndarray:
        if self._padding is None:
            return np.concatenate([np.arange(len(ids)) for ids in tokens])
        real = [ids != self._padding for ids in tokens]  # a text may itself hold the padding token, which has no place
        return np.concatenate([np.cumsum(each) * each for each in real]) + self._padding

    def _through(self, layer: _Layer, states: Tensor, runs: list[tuple[int, int]]) -> Tensor:
        attended = F.linear(self._attend(F.linear(states, *layer.qkv), runs), *layer.attended)
        states = _norm(attended.add_(states), layer.attended_norm)
        down = F.linear(layer.activation(F.linear(states, *layer.up)), *layer.down)
        return _norm(down.add_(states), layer.norm)

    def _attend(self, qkv: Tensor, runs: list[tuple[int, int]]) -> Tensor:
        """(T, W) attended values of (T, 3W): run by run, where every text is a row of one batch."""
        width = qkv.shape[1] // 3
        out = qkv.new_empty(len(qkv), width)
        start = 0
        for texts, length in runs:
            part = slice(start, start + texts * length)
            split = qkv[part].view(texts, length, 3, self._heads, width // self._heads).permute(2, 0, 3, 1, 4)
            query, key, value = split.unbind(0)  # (texts, heads, length, head width)
            values = F.scaled_dot_product_attention(query, key, value)
            out[part].view(texts, length, self._heads, -1).copy_(values.transpose(1, 2))
            start = part.stop
        return out


def packs(net: Any) -> bool:
    """Whether :class:`PackedBert` computes what ``net`` does: an encoder of the family, with no layer replaced.

    Adapters, quantised or compiled layers and hooks are other modules than the plain ones, and then it does not.
    """
    if type(net).__name__ not in _FROM_ZERO + _FROM_PADDING or not type(net).__module__.startswith("transformers."):
        return False
    config = net.config
    usual = not config.is_decoder and not getattr(config, "chunk_size_feed_forward", 0)
    parts = [module for name, module in net.named_modules() if not name.startswith("pooler")]
    linear = sum(type(part) is nn.Linear for part in parts)
    norms = sum(type(part) is nn.LayerNorm for part in parts)
    hooks = [hook for part in parts for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values())]
    # Those by which transformers gives the states of all layers change nothing, and stay once these were asked for.
    hooked = any(getattr(hook, "__module__", None) != "transformers.utils.output_capturing" for hook in hooks)
    layers = int(config.num_hidden_layers)
    return usual and not hooked and linear == 6 * layers and norms == 2 * layers + 1


def _norm(states: Tensor, parameters: tuple[Tensor, Tensor, float]) -> Tensor:
    weight, bias, eps = parameters
    return F.layer_norm(states, weight.shape, weight, bias, eps)
