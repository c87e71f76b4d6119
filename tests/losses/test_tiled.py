"""What tiled losses refuse, and what they must not fall for."""

from __future__ import annotations

import pytest
import torch

from mmcl.losses import info_nce, sigmoid

LOSSES = [lambda q, k: info_nce(q, k, 0.2, similarity="dot", tile=2), lambda q, k: sigmoid(q, k, 0.2, -1.0, tile=2)]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_second_derivative_is_refused(loss):
    q, k = (torch.randn(5, 3, requires_grad=True) for _ in range(2))
    (grad,) = torch.autograd.grad(loss(q, k), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()


@pytest.mark.parametrize("loss", LOSSES)
def test_backward_within_autocast_is_as_exact_as_without(loss):
    torch.manual_seed(0)
    q, k = (torch.randn(5, 3, requires_grad=True) for _ in range(2))
    (expected,) = torch.autograd.grad(loss(q, k), q)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (got,) = torch.autograd.grad(loss(q, k), q)
    assert torch.equal(got, expected)
