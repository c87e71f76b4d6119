"""SwAV's loss and assignments against the equations in float64, and the authors' loop of divisions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcl.losses import sinkhorn, swapped_prediction


def reference(scores, assignments, tau):
    total, count = 0.0, 0
    for g, targets in enumerate(assignments):
        for v, view in enumerate(scores):
            if v == g:
                continue
            for q, row in zip(targets, view, strict=True):
                log_sum = math.log(sum(math.exp(score / tau) for score in row))
                total -= sum(weight * (score / tau - log_sum) for weight, score in zip(q, row, strict=True))
                count += 1
    return total / count


@settings(max_examples=40, deadline=None)
@given(
    views=st.integers(2, 6),
    targets=st.integers(1, 6),
    n=st.integers(1, 6),
    k=st.integers(1, 5),
    seed=st.integers(0, 10_000),
)
def test_equals_the_equation_in_float64(views, targets, n, k, seed):
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-1, 1, size=(views, n, k))
    assignments = rng.dirichlet(np.ones(k), size=(min(targets, views), n))
    got = swapped_prediction(torch.tensor(scores), torch.tensor(assignments), 0.2)
    assert got.item() == pytest.approx(reference(scores, assignments, 0.2), rel=1e-10)


def test_gradient_flows_to_scores_and_temperature_and_not_to_assignments():
    torch.manual_seed(0)
    scores = torch.rand(4, 3, 5, dtype=torch.float64, requires_grad=True)
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assignments = torch.rand(2, 3, 5, dtype=torch.float64).softmax(dim=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: swapped_prediction(s, assignments, t), (scores, tau))
    loss = swapped_prediction(scores, assignments, tau)
    assert torch.autograd.grad(loss, assignments, allow_unused=True) == (None,)


def test_value_equals_lightly_s_with_local_crops():
    loss = pytest.importorskip("lightly.loss").SwaVLoss(temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.05)
    torch.manual_seed(1)
    scores = torch.rand(6, 8, 5) * 2 - 1
    theirs = loss([*scores[:2]], [*scores[2:]])
    torch.testing.assert_close(swapped_prediction(scores, sinkhorn(scores[:2]), 0.1), theirs.squeeze())


def authors(scores, iterations, epsilon):
    """`distributed_sinkhorn` of facebookresearch/swav on one process."""
    q = np.exp(scores / epsilon).T
    q /= q.sum()
    k, n = q.shape
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True) * k
        q /= q.sum(axis=0, keepdims=True) * n
    return (q * n).T


@pytest.mark.parametrize("iterations", [1, 3, 100])
@pytest.mark.parametrize("epsilon", [0.05, 1.0])
def test_sinkhorn_equals_the_authors_in_float64(iterations, epsilon):
    scores = np.random.default_rng(0).uniform(-1, 1, size=(12, 4))
    got = sinkhorn(torch.tensor(scores), iterations, epsilon)
    np.testing.assert_allclose(got.numpy(), authors(scores, iterations, epsilon), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(got.sum(dim=1), 1.0, rtol=1e-12)
    if iterations == 100:
        np.testing.assert_allclose(got.sum(dim=0), 3.0, rtol=0.01)


def test_leading_dimensions_are_independent():
    torch.manual_seed(2)
    scores = torch.rand(2, 6, 3)
    assert torch.equal(sinkhorn(scores), torch.stack([sinkhorn(view) for view in scores]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_where_exponentials_are_not(dtype):
    scores = (torch.eye(4) * 2 - 1).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        assignments = sinkhorn(scores, epsilon=1e-3)
        loss = swapped_prediction(scores.expand(2, 4, 4), assignments.expand(2, 4, 4), 0.001)
    assert assignments.dtype == loss.dtype == torch.float32
    assert not assignments.requires_grad
    torch.testing.assert_close(assignments, torch.eye(4))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(scores.grad).all()


def test_arguments_that_do_not_fit_are_named():
    scores = torch.rand(2, 3, 4)
    with pytest.raises(ValueError, match="at least two views"):
        swapped_prediction(scores[:1], scores[:1])
    with pytest.raises(ValueError, match="the N and K of the scores"):
        swapped_prediction(scores, scores[:, :2])
    with pytest.raises(ValueError, match="of 1 to 2 views, not of 3"):
        swapped_prediction(scores, torch.rand(3, 3, 4))
    with pytest.raises(ValueError, match="temperature must be above 0"):
        swapped_prediction(scores, scores, 0.0)
    with pytest.raises(ValueError, match="iterations must be"):
        sinkhorn(scores, 0)
    with pytest.raises(ValueError, match="epsilon must be"):
        sinkhorn(scores, epsilon=0.0)
    with pytest.raises(ValueError, match=r"\(…, N, K\)"):
        sinkhorn(scores[0, 0])
