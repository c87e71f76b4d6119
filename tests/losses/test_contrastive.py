"""The contrastive loss against the equation in float64, and against the hinges of pytorch-metric-learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmcl.losses import contrastive


def pairs(n=7, d=5):
    torch.manual_seed(0)
    return *(torch.randn(n, d, dtype=torch.float64, requires_grad=True) for _ in range(2)), torch.arange(n) % 3 == 0


@pytest.mark.parametrize("margin", [0.5, 1.0, 4.0])
def test_equals_the_equation_in_float64(margin):
    a, b, same = pairs()
    expected = 0.0
    for x, y, alike in zip(a.detach().numpy(), b.detach().numpy(), same.tolist(), strict=True):
        distance = np.sqrt(((x - y) ** 2).sum())
        expected += distance**2 / 2 if alike else max(0.0, margin - distance) ** 2 / 2
    assert contrastive(a, b, same, margin).item() == pytest.approx(expected / len(a), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x, y: contrastive(x, y, same, margin), (a, b))


@pytest.mark.parametrize("margin", [1.0, 4.0])
def test_value_and_gradient_are_those_of_the_squared_hinges_of_pytorch_metric_learning(margin):
    """It has the distance of each same pair, and the hinge of each different one; not their squares."""
    distances, losses, reducers = (
        pytest.importorskip(f"pytorch_metric_learning.{part}") for part in ("distances", "losses", "reducers")
    )
    a, b, same = pairs()
    loss = losses.ContrastiveLoss(
        neg_margin=margin,
        distance=distances.LpDistance(normalize_embeddings=False),
        reducer=reducers.DoNothingReducer(),
    )
    rows = torch.arange(len(a))
    chosen = (rows[same], rows[same] + len(a), rows[~same], rows[~same] + len(a))
    parts = loss(torch.cat([a, b]), indices_tuple=chosen)
    hinges = torch.cat([parts["pos_loss"]["losses"], parts["neg_loss"]["losses"]])
    ours, theirs = contrastive(a, b, same, margin), hinges.square().sum() / 2 / len(a)
    for mine, other in zip(
        (ours, *torch.autograd.grad(ours, (a, b))), (theirs, *torch.autograd.grad(theirs, (a, b))), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)


def test_equal_embeddings_have_a_gradient():
    a = torch.ones(2, 3, requires_grad=True)
    loss = contrastive(a, a.detach(), torch.tensor([True, False]))
    assert loss.item() == 0.25  # half of the margin's square, once in two pairs
    assert torch.equal(torch.autograd.grad(loss, a)[0], torch.zeros(2, 3))


def test_arguments_that_do_not_fit_are_named():
    a, b, same = pairs()
    with pytest.raises(ValueError, match=r"a and b .*\(7, 5\) and \(2, 5\)"):
        contrastive(a, b[:2], same)
    with pytest.raises(ValueError, match=r"same must be bool \(7,\), not torch.int64 \(7,\)"):
        contrastive(a, b, same.long())
    with pytest.raises(ValueError, match=r"same must be bool \(7,\), not torch.bool \(2,\)"):
        contrastive(a, b, same[:2])
    with pytest.raises(ValueError, match="margin must be above 0, not 0"):
        contrastive(a, b, same, 0.0)
