"""Functions of logits against those of the standard library, which are exact to the last digits of float64."""

from __future__ import annotations

import math

import pytest
import torch

from mmcl.losses.blockwise.elementwise import exp_, softplus_


def exact(function, x):
    """(N,) float64 values of a function of one number."""
    return torch.tensor([function(value) for value in x.double().tolist()], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exponentials_are_exact_to_the_rounding_of_their_argument(dtype):
    x = torch.linspace(-80, 80, 3001, dtype=dtype)
    error = exp_(x.clone()).double() / exact(math.exp, x) - 1
    assert (error.abs() <= 2 * torch.finfo(dtype).eps * x.abs().clamp(min=1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softplus_keeps_its_digits_where_it_is_small(dtype):
    x = torch.linspace(-80, 80, 3000, dtype=dtype)
    found = softplus_(x.clone().view(1000, 3)).flatten().double()  # several parts of rows
    error = found / exact(lambda value: max(value, 0) + math.log1p(math.exp(-abs(value))), x) - 1
    assert (error.abs() <= 2 * torch.finfo(dtype).eps * x.abs().clamp(min=2)).all()


def test_softplus_of_numbers_beyond_the_exponential():
    found = softplus_(torch.tensor([[2.0**99, -(2.0**99), math.inf, -math.inf]]))
    assert found.tolist() == [[2.0**99, 0, math.inf, 0]]
    assert softplus_(torch.empty(0, 3)).shape == (0, 3)
