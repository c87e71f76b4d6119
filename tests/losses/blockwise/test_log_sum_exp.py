"""Losses in tiles: what they refuse, numerical edge cases, and what they must leave alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from mmcl.losses import Blockwise, Guide, Negatives, info_nce, sigmoid
from mmcl.losses.blockwise import blocks, log_sum_exp, softplus_sum

LOSSES = [
    lambda q, k: info_nce(q, k, 0.2, similarity="dot", blockwise=Blockwise(2)),
    lambda q, k: sigmoid(q, k, 0.2, -1.0, similarity="dot", blockwise=Blockwise(2)),
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("by", [None, 0, 1])
def test_a_second_derivative_is_refused(loss, by):
    """By every input: autograd skips functions that the wanted one does not enter."""
    q, k = given = [torch.randn(5, 3, requires_grad=True) for _ in range(2)]
    (grad,) = torch.autograd.grad(loss(q, k), q, create_graph=True)
    penalty = grad.square().sum()
    with pytest.raises(RuntimeError, match=r"has no second derivative; Blockwise\(tile=None\) has one"):
        penalty.backward() if by is None else torch.autograd.grad(penalty, given[by])


@pytest.mark.parametrize("loss", LOSSES)
def test_a_graph_of_the_gradient_changes_no_gradient(loss):
    torch.manual_seed(0)
    q, k = given = [torch.randn(5, 3, requires_grad=True) for _ in range(2)]
    plain, with_graph = (torch.autograd.grad(loss(q, k), given, create_graph=graph) for graph in (False, True))
    assert all(map(torch.equal, plain, with_graph))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_of_minus_a_loss_is_minus_its_gradient(loss):
    torch.manual_seed(0)
    q, k = given = [torch.randn(5, 3, requires_grad=True) for _ in range(2)]
    plus, minus = (torch.autograd.grad(sign * loss(q, k), given) for sign in (1, -1))
    for one, other in zip(plus, minus, strict=True):
        assert one.any()
        torch.testing.assert_close(one, -other)


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


def test_ids_that_were_changed_before_the_backward_pass_are_noticed():
    q, k = (torch.randn(5, 3, requires_grad=True) for _ in range(2))
    for loss in (info_nce, partial(sigmoid, bias=-1.0)):
        ids = torch.arange(5)
        value = loss(q, k, temperature=0.2, ids=ids, blockwise=Blockwise(2))
        ids.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()


@pytest.mark.parametrize("weight", [1e28, 1e40])
def test_a_weight_beyond_the_largest_exponential(weight):
    torch.manual_seed(0)
    tensors = [torch.randn(6, 4) for _ in range(3)]
    results = []
    for dtype, tile in ((torch.float64, None), (torch.float32, 4)):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in tensors]
        negatives = Negatives(leaves[2], owner=torch.arange(6), weight=weight)
        loss = info_nce(*leaves[:2], 0.05, negatives=negatives, blockwise=Blockwise(tile))
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for exact, got in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [0, -0.1, float("nan")])
def test_a_temperature_that_is_not_above_0_is_refused(temperature):
    q = torch.randn(3, 2)
    for call in (lambda: info_nce(q, q, temperature), lambda: sigmoid(q, q, temperature, 0.0)):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            call()


def test_a_temperature_in_half_precision_is_divided_by_in_that_of_the_logits():
    torch.manual_seed(0)
    q, k = torch.randn(5, 3), torch.randn(5, 3)
    tau = torch.tensor(0.011).bfloat16()
    results = [info_nce(q, k, value, blockwise=Blockwise(2)) for value in (tau, tau.item())]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("tile", [None, 1, 3, 7])
def test_copies_of_the_positive_are_no_false_negatives_by_a_guide(tile):
    torch.manual_seed(0)
    q, guide = torch.randn(9, 4), torch.randn(9, 300)
    one = torch.randn(1, 300).expand(9, -1)
    loss = info_nce(q, q, guide=Guide(guide, one), symmetric=False, blockwise=Blockwise(tile))
    torch.testing.assert_close(loss, info_nce(q, q, symmetric=False))


def test_a_device_without_float64_is_served(monkeypatch):
    torch.manual_seed(0)
    tensors = [torch.randn(6, 4) for _ in range(3)]
    results = []
    for dtype in (torch.float64, torch.float32):
        for module in (blocks, log_sum_exp, softplus_sum):
            monkeypatch.setattr(module, "widest", lambda device, dtype=dtype: dtype)
        q, k, n = (tensor.clone().requires_grad_() for tensor in tensors)
        loss = info_nce(q, k, negatives=Negatives(n), label_smoothing=0.1, blockwise=Blockwise(4))
        loss = loss + info_nce(q, k, blockwise=Blockwise(4)) + sigmoid(q, k, 0.1, -1.0, blockwise=Blockwise(4))
        results.append([loss.detach(), *torch.autograd.grad(loss, [q, k, n])])
    for wide, narrow in zip(*results, strict=True):
        torch.testing.assert_close(narrow, wide, rtol=1e-4, atol=1e-5)


def test_the_settings_of_the_process_are_left_as_they_were():
    before = torch.backends.mkldnn.matmul.fp32_precision
    info_nce(torch.randn(5, 3), torch.randn(5, 3), blockwise=Blockwise(2))
    assert torch.backends.mkldnn.matmul.fp32_precision == before
