"""SupCon against the published equation in plain loops in float64, and other implementations of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcl.losses import Blockwise, nt_xent, sup_con


def reference(features, labels, tau):
    """Equation 2 of the paper, L_out; rows without positives are left out of the mean."""
    z = features.reshape(-1, features.shape[-1])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    labels, losses = np.repeat(labels, features.shape[1]), []
    for i in range(len(z)):
        positives = [p for p in range(len(z)) if p != i and labels[p] == labels[i]]
        total = sum(math.exp(z[i] @ z[a] / tau) for a in range(len(z)) if a != i)
        if positives:
            losses.append(-np.mean([math.log(math.exp(z[i] @ z[p] / tau) / total) for p in positives]))
    return np.mean(losses) if losses else 0.0


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 7),
    views=st.integers(1, 3),
    labels=st.integers(1, 4),
    tau=st.sampled_from([0.07, 0.5]),
    tile=st.sampled_from(["auto", None, 4]),
    seed=st.integers(0, 10_000),
)
def test_equals_the_equation_in_float64(n, views, labels, tau, tile, seed):
    rng = np.random.default_rng(seed)
    features, labels = rng.normal(size=(n, views, 5)), rng.integers(0, labels, n)
    got = sup_con(torch.tensor(features), torch.tensor(labels), tau, blockwise=Blockwise(tile))
    assert got.item() == pytest.approx(reference(features, labels, tau), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("tile", [None, 5])
def test_value_and_gradient_equal_pytorch_metric_learning_s(tile):
    loss = pytest.importorskip("pytorch_metric_learning.losses").SupConLoss(temperature=0.1)
    torch.manual_seed(0)
    features = torch.randn(9, 2, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 3])
    ours = sup_con(features, labels, 0.1, blockwise=Blockwise(tile))
    theirs = loss(features.flatten(0, 1), labels.repeat_interleave(2))
    for mine, other in zip(*[(value, *torch.autograd.grad(value, features)) for value in (ours, theirs)], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)


def test_with_every_label_different_it_is_nt_xent():
    torch.manual_seed(1)
    a, b = torch.randn(2, 6, 4, dtype=torch.float64).unbind()
    torch.testing.assert_close(sup_con(torch.stack([a, b], 1), torch.arange(6), 0.5), nt_xent(a, b, 0.5))


@pytest.mark.parametrize("tile", [None, 8])
def test_finite_at_the_smallest_temperature_in_bfloat16_and_under_autocast(tile):
    torch.manual_seed(2)
    a = torch.randn(32, 16).bfloat16()
    features = torch.stack([a, -a], dim=1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = sup_con(features, torch.arange(32) % 20, 0.01, blockwise=Blockwise(tile))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss > 90
    assert torch.isfinite(features.grad).all()


def test_shapes_that_do_not_fit_are_named():
    for features, labels in ((torch.randn(3, 4), torch.zeros(3)), (torch.randn(3, 2, 4), torch.zeros(2))):
        with pytest.raises(ValueError, match=r"features and labels must be \(N, V, D\) with V ≥ 1 and \(N,\), not"):
            sup_con(features, labels)
