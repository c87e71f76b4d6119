"""Debiased and hardness-weighted InfoNCE against the papers' equations, one row at a time in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcl.losses import Negatives, debiased_info_nce, info_nce


def reference(q, k, tau, debias, hardness, ids=None, negatives=(), negative_ids=None, owner=None, weight=1.0):
    """From query to key."""

    def cosine(a, b):
        return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))

    total = 0.0
    for i in range(len(q)):
        positive = math.exp(cosine(q[i], k[i]) / tau)
        terms = [
            math.exp(cosine(q[i], k[j]) / tau) for j in range(len(q)) if j != i and (ids is None or ids[i] != ids[j])
        ]
        terms += [
            (weight if owner[m] == i else 1.0) * math.exp(cosine(q[i], negatives[m]) / tau)
            for m in range(len(negatives))
            if ids is None or ids[i] != negative_ids[m]
        ]
        if not terms:
            continue
        terms = np.array(terms)
        importance = terms**hardness
        estimate = (importance * terms).sum() / importance.mean()
        if debias:
            estimate = (estimate - debias * len(terms) * positive) / (1 - debias)
            estimate = max(estimate, len(terms) * math.exp(-1 / tau))
        total -= math.log(positive / (positive + estimate))
    return total / len(q)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 8),
    m=st.integers(0, 5),
    debias=st.sampled_from([0.0, 0.01, 0.1, 0.6]),
    hardness=st.sampled_from([0.0, 0.5, 2.0]),
    tau=st.sampled_from([0.1, 0.5]),
    masked=st.booleans(),
    symmetric=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_equals_the_equation_in_float64(n, m, debias, hardness, tau, masked, symmetric, seed):
    rng = np.random.default_rng(seed)
    q, k, extra = rng.normal(size=(n, 4)), rng.normal(size=(n, 4)), rng.normal(size=(m, 4))
    ids, extra_ids = (rng.integers(0, 4, size=n), rng.integers(0, 4, size=m)) if masked else (None, None)
    owner = rng.integers(0, n, size=m)
    expected = reference(q, k, tau, debias, hardness, ids, extra, extra_ids, owner, 2.5)
    if symmetric:
        expected = (expected + reference(k, q, tau, debias, hardness, ids)) / 2
    options = {"debias": debias, "hardness": hardness, "symmetric": symmetric}
    if masked:
        options["ids"] = torch.tensor(ids)
    if m:
        tensors = torch.tensor(extra), torch.tensor(extra_ids) if masked else None, torch.tensor(owner)
        options["negatives"] = Negatives(*tensors, weight=2.5)
    got = debiased_info_nce(torch.tensor(q), torch.tensor(k), tau, **options)
    assert got.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_without_correction_it_is_info_nce():
    torch.manual_seed(0)
    q, k, extra = (torch.randn(size, 6, dtype=torch.float64, requires_grad=True) for size in (9, 9, 5))
    options = {"ids": torch.randint(0, 6, (9, 2)), "negatives": Negatives(extra, torch.randint(0, 6, (5, 2)))}
    results = []
    for loss in (info_nce, debiased_info_nce):
        value = loss(q, k, 0.05, **options)
        results.append((value, *torch.autograd.grad(value, (q, k, extra))))
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("debias", "hardness"), [(0.1, 0.0), (0.0, 1.0), (0.1, 1.0), (0.9, 0.5)])
def test_gradients_in_float64(debias, hardness):
    torch.manual_seed(1)
    q, k, extra = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    tau = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 1, 0, 2, 1])

    def loss(q, k, extra, tau):
        return debiased_info_nce(q, k, tau, debias=debias, hardness=hardness, ids=ids, negatives=Negatives(extra))

    assert torch.autograd.gradcheck(loss, (q, k, extra, tau))


@pytest.mark.parametrize("near", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_at_the_smallest_temperature(dtype, near):
    torch.manual_seed(2)
    q = torch.randn(64, 16).to(dtype).requires_grad_()
    k = (near * q.detach() + (1 - abs(near)) * torch.randn(64, 16)).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = debiased_info_nce(q, k, 0.01, debias=0.1, hardness=1.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(q.grad).all()


def test_identical_embeddings_are_at_the_edge_of_the_bound_and_finite():
    """All negatives are as near as the positive, so that the correction subtracts nearly everything."""
    q = torch.ones(8, 4, requires_grad=True)
    for debias in (0.4999999, 0.5, 0.9, 1 - 1e-7):
        loss = debiased_info_nce(q, q.detach(), 0.05, debias=debias)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(q.grad).all()


def test_a_batch_of_one_thing_has_no_negatives_and_no_loss():
    q = torch.randn(6, 3, requires_grad=True)
    loss = debiased_info_nce(q, torch.randn(6, 3), debias=0.1, hardness=1.0, ids=torch.zeros(6, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(q.grad, torch.zeros(6, 3))


def test_settings_out_of_range_are_named():
    x = torch.randn(3, 4)
    with pytest.raises(ValueError, match="debias"):
        debiased_info_nce(x, x, debias=1.0)
    with pytest.raises(ValueError, match="hardness"):
        debiased_info_nce(x, x, hardness=-1.0)
