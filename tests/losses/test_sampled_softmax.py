"""The corrected softmax against its equation in float64, and against what it estimates."""

from __future__ import annotations

import pytest
import torch

from mmcl.losses import Blockwise, info_nce, sampled_softmax


def batch(rows=40, dim=12, dtype=torch.float64):
    torch.manual_seed(0)
    query, key = (torch.randn(rows, dim, dtype=dtype, requires_grad=True) for _ in range(2))
    log_p = torch.rand(rows, dtype=dtype).log()
    tau = torch.tensor(0.1, dtype=dtype, requires_grad=True)
    return query, key, log_p, tau, torch.randint(0, 20, (rows, 1))


def equation(query, key, log_p, tau, ids):
    """One row at a time."""
    total = 0.0
    for i, q in enumerate(query):
        cosines = torch.cosine_similarity(q[None], key)
        corrected = cosines / tau - log_p
        there = (ids[:, 0] != ids[i, 0]) | (torch.arange(len(key)) == i)
        total = total - (corrected[i] - corrected[there].logsumexp(0))
    return total / len(query)


@pytest.mark.parametrize("tile", [None, 7])
def test_value_and_gradients_equal_the_equation_in_float64(tile):
    query, key, log_p, tau, ids = batch()
    wanted = equation(query, key, log_p, tau, ids)
    found = sampled_softmax(query, key, log_p, tau, ids=ids, blockwise=Blockwise(tile=tile))
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)
    for one, other in zip(
        torch.autograd.grad(found, (query, key, tau)), torch.autograd.grad(wanted, (query, key, tau)), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-9)


def test_equal_probabilities_change_nothing():
    query, key, _, tau, ids = batch(dtype=torch.float32)
    even = torch.full((len(key),), -7.3)
    plain = info_nce(query, key, tau, ids=ids, symmetric=False)
    torch.testing.assert_close(sampled_softmax(query, key, even, tau, ids=ids), plain, atol=1e-5, rtol=1e-5)


def test_the_gradient_of_large_batches_is_that_of_the_softmax_over_the_catalogue():
    """Which is what the correction is for: without it the same batches miss it by far."""
    torch.manual_seed(1)
    items, rows = 30, 60_000
    popularity = torch.arange(1, items + 1, dtype=torch.float64) ** -1.2
    popularity /= popularity.sum()
    key = torch.randn(items, 8, dtype=torch.float64)
    user = torch.randn(1, 8, dtype=torch.float64, requires_grad=True)
    full = sampled_softmax(user.expand(items, -1), key, torch.zeros(items), 0.5)
    (wanted,) = torch.autograd.grad(full, user)
    # Positives evenly over the catalogue, as in the full one; all other columns drawn by popularity.
    drawn = torch.multinomial(popularity, rows, replacement=True)

    def gradient(log_p):
        logits = torch.cosine_similarity(user, key[drawn]) / 0.5 - log_p[drawn]
        positives = torch.cosine_similarity(user, key).mean() / 0.5
        (found,) = torch.autograd.grad(logits.logsumexp(0) - positives, user)
        return found

    exact, biased = ((gradient(log_p) - wanted).norm() for log_p in (popularity.log(), torch.zeros(items).double()))
    assert exact < 0.1 * wanted.norm()
    assert biased > 5 * exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_at_a_low_temperature_and_for_rare_items(dtype):
    query, key, _, _, ids = batch(dtype=torch.float32)
    query, key = query.to(dtype), key.to(dtype)
    loss = sampled_softmax(query, key, torch.linspace(-30, 0, len(key)), 0.01, ids=ids)
    loss.backward()
    assert loss.isfinite()
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(40, 1)])
def test_probabilities_of_another_shape_are_refused(wrong):
    query, key, _, tau, _ = batch()
    with pytest.raises(ValueError, match=r"log_probability must be \(40,\)"):
        sampled_softmax(query, key, wrong, tau)
