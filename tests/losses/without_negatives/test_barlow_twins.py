"""Barlow Twins against the equations in float64, and the authors' batch normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mmcl.losses import barlow_twins, cross_correlation


@pytest.mark.parametrize("weight", [0.0, 0.0051, 1.0])
def test_equals_the_equations_in_float64(weight):
    rng = np.random.default_rng(0)
    a, b = rng.normal(2.0, 3.0, size=(9, 5)), rng.normal(size=(9, 5))
    expected = 0.0
    for i in range(5):
        for j in range(5):
            x, y = a[:, i] - a[:, i].mean(), b[:, j] - b[:, j].mean()
            c = sum(x * y) / np.sqrt(sum(x**2)) / np.sqrt(sum(y**2))
            expected += (1 - c) ** 2 if i == j else weight * c**2
    found = barlow_twins(torch.tensor(a), torch.tensor(b), weight, epsilon=0.0)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_equals_the_authors_code_with_gradients():
    torch.manual_seed(0)
    a, b = (torch.randn(12, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    norm = nn.BatchNorm1d(6, affine=False).double()
    c = norm(a).T @ norm(b) / 12
    rest = c[~torch.eye(6, dtype=torch.bool)]
    theirs = (c.diagonal() - 1).pow(2).sum() + 0.0051 * rest.pow(2).sum()
    ours = barlow_twins(a, b, 0.0051)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    for mine, other in zip(torch.autograd.grad(ours, (a, b)), torch.autograd.grad(theirs, (a, b)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-14)
    assert torch.autograd.gradcheck(barlow_twins, (a, b))


def test_dimensions_far_from_zero_and_without_spread_correlate_with_nothing():
    torch.manual_seed(1)
    a = torch.cat([torch.full((8, 1), 0.1), 1000 + torch.randn(8, 1)], dim=1).requires_grad_()
    correlation = cross_correlation(a, a)
    torch.testing.assert_close(correlation, torch.tensor([[0.0, 0.0], [0.0, 1.0]]), rtol=0, atol=1e-4)
    barlow_twins(a, a).backward()
    assert a.grad.isfinite().all()


def test_accumulated_in_float32_within_autocast():
    torch.manual_seed(2)
    p = torch.randn(8, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        inside = barlow_twins(p, p)
    assert inside.dtype == torch.float32
    assert inside.item() == pytest.approx(barlow_twins(p.double(), p.double()).item(), rel=1e-5)


def test_arguments_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"a and b .*\(3, 4\)"):
        barlow_twins(torch.randn(3, 4), torch.randn(2, 4))
    with pytest.raises(ValueError, match="redundancy_weight must be 0 or more, not -1"):
        barlow_twins(torch.eye(3), torch.eye(3), -1)
    with pytest.raises(ValueError, match="epsilon must be 0 or more, not -1"):
        cross_correlation(torch.eye(3), torch.eye(3), epsilon=-1)
