"""Losses of labelled pairs against sentence-transformers, and against their equations in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmcl.losses import cosent, cosine_mse


@pytest.fixture
def pairs():
    """Pairs and their scores, of which several are the same."""
    torch.manual_seed(0)
    a, b = torch.randn(2, 20, 6).unbind()
    return a, b, torch.randint(0, 6, (20,)).float()


def cosines(a, b):
    a, b = a.double().numpy(), b.double().numpy()
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_value_and_gradients_of_cosent_equal_sentence_transformers(pairs):
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss

    a, b, scores = pairs
    results = []
    for loss in (
        lambda x, y: cosent(x, y, scores, 0.05),
        lambda x, y: CoSENTLoss(None, scale=20.0).compute_loss_from_embeddings([x, y], scores),
    ):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        value = loss(x, y)
        results.append((value, *torch.autograd.grad(value, (x, y))))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_cosent_is_its_equation_in_float64(pairs):
    a, b, scores = pairs
    c = cosines(a, b)
    total = sum(math.exp((c[j] - c[i]) / 0.2) for i in range(len(c)) for j in range(len(c)) if scores[i] > scores[j])
    assert cosent(a.double(), b.double(), scores, 0.2).item() == pytest.approx(math.log(1 + total), rel=1e-12)
    assert cosent(a, b, 10 * scores - 3, 0.2).item() == cosent(a, b, scores, 0.2).item()  # only their order counts


def test_cosent_of_equal_scores_is_nothing():
    a = torch.randn(4, 3, requires_grad=True)
    loss = cosent(a, torch.randn(4, 3), torch.ones(4))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(a.grad, torch.zeros(4, 3))


def test_cosine_mse_equals_sentence_transformers_and_its_equation(pairs):
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    a, b, scores = pairs
    theirs = CosineSimilarityLoss(None).compute_loss_from_embeddings([a, b], scores / 5)
    torch.testing.assert_close(cosine_mse(a, b, scores / 5), theirs)
    expected = np.mean((cosines(a, b) - scores.double().numpy() / 5) ** 2)
    assert cosine_mse(a.double(), b.double(), scores.double() / 5).item() == pytest.approx(expected, rel=1e-12)


def test_gradients_in_float64(pairs):
    a, b = (x[:5].double().requires_grad_() for x in pairs[:2])
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    scores = torch.tensor([1.0, 3.0, 3.0, 0.0, 2.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b, tau: cosent(a, b, scores, tau), (a, b, tau))
    assert torch.autograd.gradcheck(lambda a, b: cosine_mse(a, b, scores / 3), (a, b))


def test_finite_at_the_smallest_temperature_and_in_float32_under_autocast():
    torch.manual_seed(1)
    a = torch.randn(64, 8, dtype=torch.bfloat16).requires_grad_()
    scores = torch.arange(64.0)
    b = torch.where(scores[:, None] < 32, a.detach(), -a.detach())  # the wrong way round
    with torch.autocast("cpu", torch.bfloat16):
        loss, distance = cosent(a, b, scores, 0.01), cosine_mse(a, b, scores / 64)
    (loss + distance).backward()
    assert loss.dtype == distance.dtype == torch.float32
    assert loss > 190
    assert torch.isfinite(a.grad).all()


def test_shapes_that_do_not_fit_are_named():
    x = torch.randn(3, 4)
    with pytest.raises(ValueError, match="one score for each of 3"):
        cosent(x, x, torch.zeros(2))
    with pytest.raises(ValueError, match="query and key"):
        cosine_mse(x, x[:2], torch.zeros(3))
    with pytest.raises(ValueError, match="temperature"):
        cosent(x, x, torch.zeros(3), torch.ones(2))


@pytest.mark.parametrize("temperature", [0.0, -0.1])
def test_a_temperature_that_is_none_is_refused(pairs, temperature):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        cosent(*pairs, temperature)
