"""Linear layers of 8-bit integers against the same rounding in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmcl.runtime.device import multiplies_int8
from mmcl.runtime.int8 import Int8Linear, Range, closest_range

pytestmark = pytest.mark.skipif(
    not multiplies_int8(torch.device("cpu")), reason="no products of 8-bit integers in this CPU"
)

ACTIVATIONS = {
    None: lambda values: values,
    "gelu": F.gelu,
    "gelu_tanh": lambda values: F.gelu(values, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


def layer(seed: int = 0, rows: int = 70, inner: int = 40, outer: int = 33):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inner, generator=generator)
    x[:, 3] *= 8  # a column of large values
    return x, torch.randn(outer, inner, generator=generator) / 6, torch.randn(outer, generator=generator)


def rounded_product(x, weight, bias, inputs, smoothing):
    """What the layer stands for, in float64 and without integers."""
    weight = (weight * smoothing).double()
    scales = weight.abs().amax(1, keepdim=True) / 127
    states = inputs.rounded((x / smoothing).double())
    return states @ ((weight / scales).round() * scales).T + (0 if bias is None else bias.double())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_a_layer_is_the_product_of_rounded_factors(activation, smooth, biased):
    x, weight, bias = layer()
    bias = bias if biased else None
    smoothing = x.abs().amax(0).sqrt() if smooth else torch.ones(x.shape[1])
    inputs = Range.between(-3.0, 4.0)  # some values are outside
    expected = ACTIVATIONS[activation](rounded_product(x, weight, bias, inputs, smoothing))
    ours = Int8Linear(weight, bias, inputs, smoothing=smoothing if smooth else None, activation=activation)(x)
    # A value in the middle between two integers may be rounded to the other one in float32.
    close = torch.isclose(ours.double(), expected, atol=1e-5, rtol=1e-5)
    assert ours.dtype == torch.float32
    assert close.double().mean() > 0.98


def test_a_layer_in_bfloat16_rounds_inputs_as_those_in_float32_and_its_outputs_once():
    x, weight, bias = layer()
    x = x.bfloat16()
    before = x.clone()
    ours = Int8Linear(weight, bias, closest_range(x.float()), activation="gelu", dtype=torch.bfloat16)(x)
    wide = Int8Linear(weight, bias, closest_range(x.float()), activation="gelu")(x.float())
    assert torch.equal(ours, wide.bfloat16())
    assert torch.equal(x, before)


def test_outputs_in_integers_are_read_by_the_next_layer_as_they_are():
    x, weight, bias = layer()
    between = Range.between(-0.2, 5.0)
    inner = Int8Linear(weight, bias, closest_range(x), activation="gelu", outputs=between)(x)
    assert inner.dtype == torch.uint8
    real = Int8Linear(weight, bias, closest_range(x), activation="gelu")(x)
    assert torch.equal((inner.float() - between.zero) * between.scale, between.rounded(real))
    _, weight, bias = layer(1, inner=33, outer=16)
    last = Int8Linear(weight, bias, between)
    assert torch.equal(last(inner), last(between.rounded(real)))


def test_rounding_is_to_the_nearest_integer_and_to_the_ends_of_the_range():
    inputs = Range(0.5, 100)
    identity = Int8Linear(torch.eye(8), None, inputs)
    values = torch.tensor([[0.0, 0.24, 0.26, -0.26, -50.0, -1e4, 77.5, 1e9]])
    expected = torch.tensor([[0.0, 0.0, 0.5, -0.5, -50.0, -50.0, 77.5, 77.5]])
    torch.testing.assert_close(identity(values), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [32, 40, 256, 384])
def test_a_row_gives_the_same_to_the_bit_whatever_rows_stand_beside_it(width, dtype):
    x, weight, bias = layer(inner=width, outer=3 * width)
    run = Int8Linear(weight, bias, closest_range(x), activation="gelu", dtype=dtype)
    x = x.to(dtype)
    whole = run(x)
    for rows in (1, 2, 7, 16, 33):
        assert torch.equal(run(x[-rows:]), whole[-rows:])


def test_a_few_large_values_are_cut_off_where_that_pays():
    values = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    values[0] = 30
    chosen, whole = closest_range(values), Range.between(float(values.min()), 30.0)
    error = {each: float((each.rounded(values) - values).square().mean()) for each in (chosen, whole)}
    assert error[chosen] < 0.6 * error[whole]
    for each in (chosen, whole):
        assert float(each.rounded(torch.zeros(1))) == 0


def test_ranges_are_the_same_where_float32_differs_in_its_last_digits():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert closest_range(values) == closest_range(values * (1 + 3e-7))


def test_columns_of_zeros_have_a_layer():
    zero = Int8Linear(torch.zeros(4, 8), torch.ones(4), closest_range(torch.zeros(5, 8)))
    assert torch.equal(zero(torch.zeros(5, 8)), torch.ones(5, 4))
