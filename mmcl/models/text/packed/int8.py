"""Weights of packed transformers in 8-bit integers, in ranges measured beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmcl.models.text.packed.transformer import (
    Function,
    InferenceWeights,
    PackedTransformer,
    fused_activation,
    joined_parameters,
)
from mmcl.runtime.int8 import Int8Linear, Range, closest_range, few_digits

_SAMPLED = 32_768
"""Values of a layer's inputs in which its range is looked for."""
_MIGRATION = 0.5
"""Share of the differences between columns that goes from inputs to weights; SmoothQuant's own."""


@torch.no_grad()
def int8_transformer(net: Any, tokens: Sequence[np.ndarray]) -> tuple[PackedTransformer, float]:
    """``net`` with linear layers of 8-bit integers; attention, norms and residuals are in float32.

    Args:
        net: a model that :func:`mmcl.models.text.packed.families.describe` describes, on a CPU that
            :func:`mmcl.runtime.device.multiplies_int8`.
        tokens: the ids of texts, by falling length; layers round their inputs in the ranges these have there.

    Returns:
        What computes; and the mean cosine of the states that it and ``net`` give these tokens.
    """
    watched = _WatchedWeights()
    (exact,), _ = PackedTransformer(net, watched, torch.float32)(tokens)
    rounding = PackedTransformer(net, _Int8Weights(watched.inputs), torch.float32)
    (rough,), _ = rounding(tokens)
    return rounding, float(torch.cosine_similarity(exact, rough).mean())


@dataclass
class _Inputs:
    """What the inputs of a linear layer were.

    Attributes:
        columns: (K,) largest magnitude of each column.
        sample: (n, K) some rows.
        given_by: the layer whose activated outputs they are, as they stand.
    """

    columns: Tensor
    sample: Tensor
    given_by: nn.Linear | None


class _WatchedWeights(InferenceWeights):
    """float32 weights whose layers keep what they read; ``inputs`` of each, by the first of the layers joined in it."""

    def __init__(self) -> None:
        super().__init__(torch.float32)
        self.inputs: dict[nn.Linear, _Inputs] = {}
        self._given: tuple[Tensor | None, nn.Linear | None] = None, None

    def linear(self, layers: Sequence[nn.Linear], activation: nn.Module | None) -> Function:
        compute = super().linear(layers, activation)

        def watched(states: Tensor) -> Tensor:
            outputs, giver = self._given
            rows = states[:: max(1, states.numel() // _SAMPLED)].clone()
            self.inputs[layers[0]] = _Inputs(states.abs().amax(0), rows, giver if states is outputs else None)
            given = compute(states)
            self._given = (None if activation is None else given), layers[0]
            return given

        return watched


class _Int8Weights(InferenceWeights):
    """Linear layers of 8-bit integers; all else in float32.

    Args:
        inputs: of the layers, as :class:`_WatchedWeights` saw them.
    """

    def __init__(self, inputs: dict[nn.Linear, _Inputs]) -> None:
        super().__init__(torch.float32)
        self._inputs = inputs
        self._reader = {seen.given_by: seen for seen in inputs.values() if seen.given_by is not None}

    def linear(self, layers: Sequence[nn.Linear], activation: nn.Module | None) -> Function:
        seen = self._inputs[layers[0]]
        weight, bias = joined_parameters(layers)
        name = fused_activation(activation)
        reader = self._reader.get(layers[0]) if name is not None else None
        smoothing = None if seen.given_by is not None else _smoothing(seen.columns, weight)
        product = Int8Linear(
            weight,
            bias,
            _range(seen, smoothing),
            smoothing=smoothing,
            activation=name,
            outputs=None if reader is None else _range(reader, None),
        )
        if activation is None or name is not None:
            return product
        return lambda states: activation(product(states))


def _range(seen: _Inputs, smoothing: Tensor | None) -> Range:
    return closest_range(seen.sample if smoothing is None else seen.sample / smoothing)


def _smoothing(columns: Tensor, weight: Tensor) -> Tensor:
    of_inputs, of_weights = columns.clamp_min(1e-5), weight.abs().amax(0).clamp_min(1e-5)
    return few_digits(of_inputs**_MIGRATION / of_weights ** (1 - _MIGRATION))
