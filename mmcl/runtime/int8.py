"""Linear layers of 8-bit integers on CPUs, by oneDNN, which torch holds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmcl.runtime.products import ACTIVATIONS

_INTEGERS = 2.0**23
"""From here to twice as much, float32 numbers are the integers, and their low bytes are the integers' low bytes: adding
this rounds to the nearest integer, halves to the even one."""
_ROWS = 16
"""The fewest rows of a product. For fewer oneDNN leaves AMX, for a kernel that rounds scale and bias otherwise."""
_SHARES = tuple(2.0 ** (-step / 4) for step in range(17))
"""Of the largest values, among which :func:`closest_range` looks: 1 down to 1/16."""


def few_digits(values: Tensor) -> Tensor:
    """Positive numbers rounded to 8 bits.

    What is measured in float32 differs in its last digits between machines, and between numbers of threads; rounded, it
    is nearly always the same, and so are the integers that come of it.
    """
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp((mantissa * 256).round() / 256, exponent)


class Range(NamedTuple):
    """Which real numbers uint8 stands for: scale · (integer - zero), for integers from 0 to 255."""

    scale: float
    zero: int

    @classmethod
    def between(cls, low: float, high: float) -> Range:
        """The range from ``low``, at most 0, to ``high``, at least 0. 0 itself is always among its numbers."""
        scale = float(few_digits(torch.tensor(max(high - low, 1e-12) / 255)))
        return cls(scale, min(255, round(-low / scale)))

    def rounded(self, values: Tensor) -> Tensor:
        """The numbers of the range nearest to ``values``."""
        return (values / self.scale).round().add_(self.zero).clamp_(0, 255).sub_(self.zero).mul_(self.scale)


def closest_range(values: Tensor) -> Range:
    """The range in which ``values`` have the least mean squared error of rounding, of some between 0 and the largest.

    A few large values are cut off where that makes the steps between all others finer.
    """
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    candidates = [Range.between(low * share, high * share) for share in _SHARES]
    # Below 0, an activation such as GELU has little, all of which matters.
    candidates += [Range.between(low, high * share) for share in _SHARES[1:]]
    return min(candidates, key=lambda candidate: float((candidate.rounded(values) - values).square().mean()))


class Int8Linear:
    """A linear layer and its activation in 8-bit integers: inputs in uint8 in a fixed range, weights in int8 with one
    scale an output. Products are added up exactly; what a row gives depends on no other row.

    Args:
        weight: (M, K) float32.
        bias: (M,) float32.
        inputs: their range, after the division by ``smoothing``.
        smoothing: (K,) by which inputs are divided and weights multiplied: columns of large values leave others room in
            the one range of all (Xiao et al. 2022, SmoothQuant, arXiv:2211.10438). None: 1.
        activation: as for :class:`mmcl.runtime.products.PackedLinear`.
        outputs: round outputs to uint8 in this range, for a layer that has it for its inputs. None: ``dtype``.
        dtype: float32 or bfloat16.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        inputs: Range,
        *,
        smoothing: Tensor | None = None,
        activation: str | None = None,
        outputs: Range | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        smoothing = torch.ones(weight.shape[1]) if smoothing is None else smoothing
        weight = weight.detach() * smoothing
        self._scales = (weight.abs().amax(1) / 127).clamp_min(1e-12)
        rounded = (weight / self._scales[:, None]).round().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)
        self._bias = None if bias is None else bias.detach().float()
        self._inputs, self._outputs = inputs, outputs
        self._dtype = dtype if outputs is None else torch.uint8
        self._steps = 1 / (smoothing * inputs.scale)
        self._shift = torch.full_like(smoothing, _INTEGERS + inputs.zero)
        self._activation = ACTIVATIONS[activation]

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """(T, M) of (T, K): of real numbers, or of uint8 that are in the range of the inputs already."""
        rows = len(x)
        if x.dtype != torch.uint8:
            x = self._to_integers(x)
        if rows < _ROWS:
            x = torch.cat([x, x.new_zeros(_ROWS - rows, x.shape[1])])
        scale, zero = self._outputs or Range(1.0, 0)
        _, name, variant = self._activation
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            x, *self._inputs, self._weight, self._scales, self._zeros, self._bias, scale, zero, self._dtype,
            name, [], variant,
        )  # fmt: skip
        return result[:rows]

    def _to_integers(self, x: Tensor) -> Tensor:
        near = x.float()  # a copy of bfloat16, which is written over
        near = torch.addcmul(self._shift, near, self._steps, out=None if near is x else near)
        return near.clamp_(_INTEGERS, _INTEGERS + 255).view(torch.int32).to(torch.uint8)
