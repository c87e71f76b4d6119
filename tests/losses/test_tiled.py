"""What tiled losses refuse, and what they must not fall for."""

from __future__ import annotations

import pytest
import torch

from mmcl.losses import info_nce, sigmoid

LOSSES = [
    lambda q, k: info_nce(q, k, 0.2, similarity="dot", tile=2),
    lambda q, k: sigmoid(q, k, 0.2, -1.0, similarity="dot", tile=2),
]


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


@pytest.mark.parametrize("loss", LOSSES)
def test_embeddings_that_were_changed_before_the_backward_pass_are_noticed(loss):
    q, k = torch.randn(5, 3), torch.randn(5, 3, requires_grad=True)
    value = loss(q, k)
    q.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("weight", [1e28, 1e40])
def test_a_weight_beyond_the_largest_exponential(weight):
    torch.manual_seed(0)
    tensors = [torch.randn(6, 4) for _ in range(3)]
    results = []
    for dtype, tile in ((torch.float64, None), (torch.float32, 4)):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in tensors]
        loss = info_nce(
            *leaves[:2], 0.05, negatives=leaves[2], negative_owner=torch.arange(6), own_weight=weight, tile=tile
        )
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for exact, tiled in zip(*results, strict=True):
        torch.testing.assert_close(tiled.double(), exact, rtol=1e-4, atol=1e-5)
