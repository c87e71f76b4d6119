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
from mmcl.runtime.device import has_amx
from mmcl.runtime.int8 import Int8Linear, Range, closest_range, few_digits

_SAMPLED = 32_768
"""Values of a layer's inputs in which its range is looked for."""
_MIGRATION = 0.5
"""Share of the differences between columns that goes from inputs to weights; SmoothQuant's own."""
_LEAST_OUTPUTS = 1024
"""Of a layer, with AMX, from which on integers are faster than bfloat16 although inputs have to be rounded first.
Microseconds a row on one core of a Xeon, of 384 and 768 numbers: 0.2 and 0.5 to round it; 0.9 and 3.7 for three times
as many outputs in bfloat16, 0.8 and 2.9 in integers; 0.3 and 1.4 for as many outputs, 0.3 and 1.0 in integers."""


@torch.no_grad()
def int8_transformer(net: Any, tokens: Sequence[np.ndarray]) -> tuple[PackedTransformer, float]:
    """``net`` with linear layers of 8-bit integers; attention, norms and residuals are in float32, or with AMX in
    bfloat16, and so are linear layers that integers would not make faster.

    Args:
        net: a model that :func:`mmcl.models.text.packed.families.describe` describes, on a CPU that
            :func:`mmcl.runtime.device.multiplies_int8`.
        tokens: the ids of texts, by falling length; layers round their inputs in the ranges these have there.

    Returns:
        What computes; and the mean cosine of the states that it and ``net`` give these tokens.
    """
    watched = _WatchedWeights()
    (exact,), _ = PackedTransformer(net, watched, torch.float32)(tokens)
    dtype = torch.bfloat16 if has_amx() else torch.float32
    rounding = PackedTransformer(net, _Int8Weights(watched.inputs, dtype), dtype)
    (rough,), _ = rounding(tokens)
    return rounding, float(torch.cosine_similarity(exact, rough.float()).mean())


@dataclass
class _Inputs:
    """What the inputs of a linear layer were.

    Attributes:
        columns: (K,) largest magnitude of each column.
        sample: (n, K) some rows.
        given_by: the layer whose outputs they are, as they stand, with an activation that can be part of its product.
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
            self._given = (None if fused_activation(activation) is None else given), layers[0]
            return given

        return watched


class _Int8Weights(InferenceWeights):
    """Linear layers of 8-bit integers; all else in ``dtype``.

    Args:
        inputs: of the layers, as :class:`_WatchedWeights` saw them.
        dtype: float32; bfloat16 where products in it are as fast as AMX's.
    """

    def __init__(self, inputs: dict[nn.Linear, _Inputs], dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self._inputs = inputs
        self._reader = {seen.given_by: seen for seen in inputs.values() if seen.given_by is not None}

    def linear(self, layers: Sequence[nn.Linear], activation: nn.Module | None) -> Function:
        seen = self._inputs[layers[0]]
        weight, bias = joined_parameters(layers)
        reads_integers = seen.given_by is not None and self._pays(seen.given_by.out_features)
        if not reads_integers and not self._pays(len(weight)):
            return super().linear(layers, activation)
        name = fused_activation(activation)
        reader = self._reader.get(layers[0])
        smoothing = None if reads_integers else _smoothing(seen.columns, weight)
        product = Int8Linear(
            weight,
            bias,
            _range(seen, smoothing),
            smoothing=smoothing,
            activation=name,
            outputs=None if reader is None else _range(reader, None),
            dtype=self._dtype,
        )
        if activation is None or name is not None:
            return product
        return lambda states: activation(product(states))

    def _pays(self, outputs: int) -> bool:
        """Whether a layer of so many is faster in integers, its inputs' rounding included."""
        return self._dtype == torch.float32 or outputs >= _LEAST_OUTPUTS


def _range(seen: _Inputs, smoothing: Tensor | None) -> Range:
    return closest_range(seen.sample if smoothing is None else seen.sample / smoothing)


def _smoothing(columns: Tensor, weight: Tensor) -> Tensor:
    of_inputs, of_weights = columns.clamp_min(1e-5), weight.abs().amax(0).clamp_min(1e-5)
    return few_digits(of_inputs**_MIGRATION / of_weights ** (1 - _MIGRATION))
