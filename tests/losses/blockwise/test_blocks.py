"""Tiled losses against the dense ones in float64, which are tested against the equations themselves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcl.losses import Blockwise, Guide, Negatives, batch_accuracy, info_nce, sigmoid
from mmcl.losses.blockwise import blocks, plan
from mmcl.runtime import products


def compare(loss, tensors, tile, rtol=1e-10, atol=1e-11):
    """The loss, and its gradients by all tensors, in tiles and in one piece.

    The dense loss subtracts logits of 100 from each other, so that it is itself not exact beyond ``atol``.
    """
    results = []
    for size in (None, tile):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        value = loss(*leaves, blockwise=Blockwise(size))
        value.backward()
        assert value.dtype == tensors[0].dtype
        results.append([value.detach(), *(leaf.grad for leaf in leaves)])
    for dense, tiled in zip(*results, strict=True):
        torch.testing.assert_close(tiled, dense, rtol=rtol, atol=atol)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 23),
    m=st.integers(0, 17),
    d=st.integers(2, 9),
    tile=st.integers(1, 25),
    columns=st.integers(0, 2),
    weight=st.sampled_from([None, 0.3, 1.0, 2.5]),
    guided=st.booleans(),
    symmetric=st.booleans(),
    similarity=st.sampled_from(["cosine", "dot", "euclidean"]),
    smooth=st.sampled_from([0.0, 0.0, 0.2]),
    tau=st.sampled_from([0.01, 0.07, 0.5]),
    seed=st.integers(0, 10_000),
)
def test_info_nce_in_tiles_equals_the_dense_one(
    n, m, d, tile, columns, weight, guided, symmetric, similarity, smooth, tau, seed
):
    torch.manual_seed(seed)
    q, k, extra = (torch.randn(size, d, dtype=torch.float64) for size in (n, n, m))
    by_guide = [torch.randn(len(x), 3, dtype=torch.float64) for x in (q, k, extra)]
    options = {"symmetric": symmetric, "similarity": similarity, "label_smoothing": smooth}
    if columns:
        options["ids"] = torch.randint(9, (n, columns)), torch.randint(9, (n, columns))
    of_negatives = {"ids": torch.randint(9, (m, columns))} if columns else {}
    if weight is not None:
        of_negatives |= {"owner": torch.randint(n, (m,)), "weight": weight}
    if guided:
        options["guide"] = Guide(by_guide[0], by_guide[1], by_guide[2] if m and weight else None, 0.1)

    def loss(q, k, tau, *vectors, blockwise):
        negatives = Negatives(vectors[0], **of_negatives) if vectors else None
        return info_nce(q, k, tau, negatives=negatives, blockwise=blockwise, **options)

    compare(loss, [q, k, torch.tensor(tau, dtype=torch.float64), *([extra] if m else [])], tile)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 23),
    d=st.integers(2, 9),
    tile=st.integers(1, 25),
    columns=st.integers(0, 2),
    similarity=st.sampled_from(["cosine", "dot", "euclidean"]),
    bias=st.floats(-12, 3),
    tau=st.sampled_from([0.01, 0.07, 0.5]),
    seed=st.integers(0, 10_000),
)
def test_sigmoid_in_tiles_equals_the_dense_one(n, d, tile, columns, similarity, bias, tau, seed):
    torch.manual_seed(seed)
    tensors = [torch.randn(n, d), torch.randn(n, d), torch.tensor(tau), torch.tensor(bias)]
    ids = torch.randint(9, (n, columns)) if columns else None

    def loss(*tensors, blockwise):
        return sigmoid(*tensors, ids=ids, similarity=similarity, blockwise=blockwise)

    compare(loss, [tensor.double() for tensor in tensors], tile)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 23),
    tile=st.integers(1, 25),
    masked=st.booleans(),
    seed=st.integers(0, 9999),
)
def test_accuracy_in_tiles_equals_the_dense_one(n, tile, masked, seed):
    torch.manual_seed(seed)
    q, k = torch.randint(3, (n, 2)).float() + 1, torch.randint(3, (n, 2)).float() + 1  # there are ties
    ids = (torch.randint(9, (n,)), torch.randint(9, (n,))) if masked else None
    results = [batch_accuracy(q, k, ids=ids, similarity="dot", blockwise=Blockwise(size)) for size in (None, tile)]
    assert results[0] == results[1]


@pytest.mark.parametrize("tau", [0.01, 0.07])
def test_float32_in_tiles_is_as_exact_as_the_dense_loss(tau):
    torch.manual_seed(1)
    q = F.normalize(torch.randn(300, 32), dim=1)
    k = F.normalize(q + 0.15 * torch.randn(300, 32), dim=1)
    exact = []
    for dtype, tile in ((torch.float64, None), (torch.float32, 77)):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in (q, k, torch.tensor(tau))]
        loss = info_nce(*leaves, blockwise=Blockwise(tile))
        loss.backward()
        exact.append([loss.detach().double(), *(leaf.grad.double() for leaf in leaves)])
    for expected, got in zip(*exact, strict=True):
        assert (got - expected).norm() <= 1e-5 * max(expected.norm(), 1e-2)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_gradcheck(similarity):
    torch.manual_seed(2)
    q, k, extra = (torch.randn(size, 4, dtype=torch.float64, requires_grad=True) for size in (5, 5, 7))
    tau, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.3, -1.0))
    ids = torch.tensor([0, 1, 0, 2, 1])

    def contrast(q, k, extra, tau):
        negatives = Negatives(extra, owner=torch.arange(7) % 5, weight=2.0)
        return info_nce(q, k, tau, ids=ids, negatives=negatives, similarity=similarity, blockwise=Blockwise(3))

    assert torch.autograd.gradcheck(contrast, (q, k, extra, tau))
    judged = lambda *given: sigmoid(*given, ids=ids, similarity=similarity, blockwise=Blockwise(3))  # noqa: E731
    assert torch.autograd.gradcheck(judged, (q, k, tau, bias))


@pytest.mark.parametrize("spread", [1.0, -1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_where_logits_lie_hundreds_apart(dtype, spread):
    """In float32 one exponential cannot serve rows and columns here, for e⁸⁸ is its largest number."""
    torch.manual_seed(3)
    q = torch.randn(64, 16).to(dtype)
    k = q * spread
    leaves = [x.clone().requires_grad_() for x in (q, k)]
    similarity = "dot" if spread == 30.0 else "cosine"
    loss = info_nce(*leaves, 0.01, similarity=similarity, blockwise=Blockwise(10))
    loss.backward()
    assert loss.dtype == torch.float32
    exact = [x.double().requires_grad_() for x in (q, k)]
    expected = info_nce(*exact, 0.01, similarity=similarity, blockwise=Blockwise(None))
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    for got, leaf in zip(leaves, exact, strict=True):
        least = torch.finfo(dtype).tiny  # what is smaller is not represented exactly
        torch.testing.assert_close(
            got.grad.double(), leaf.grad, rtol=0.02, atol=1e-2 * leaf.grad.abs().max().item() + least
        )


def test_a_batch_of_one_thing_has_no_negatives_and_no_loss():
    q = torch.randn(6, 3, requires_grad=True)
    options = {"ids": torch.zeros(6, dtype=torch.long), "negatives": Negatives(torch.zeros(0, 3))}
    loss = info_nce(q, torch.randn(6, 3), **options, blockwise=Blockwise(2))
    loss.backward()
    assert loss.item() == 0.0
    assert not q.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_in_bfloat16_stay_within_a_hundredth_of_the_gradient(dtype, monkeypatch):
    """Elsewhere than on hardware that multiplies bfloat16, the products are rounded as such hardware rounds them."""
    torch.manual_seed(4)
    q = torch.randn(40, 24).bfloat16()
    k = (q.float() + torch.randn(40, 24)).bfloat16()
    multiply = blocks.multiply

    def rounded(a, b, out, *, precision, add=False):
        assert precision == "bfloat16"
        multiply(a.bfloat16().float(), b.bfloat16().float(), out, precision=precision, add=add)

    monkeypatch.setattr(blocks, "multiply", rounded)
    for module in (plan, products):
        monkeypatch.setattr(module, "multiplies_bfloat16", lambda device: True)
    if dtype == torch.float32:
        monkeypatch.setattr(products, "float32_setting", lambda device: "bf16")  # torch's "medium"
    for tau in (0.02, 0.07):
        grads = []
        for kind, tile in ((torch.float64, None), (dtype, 16)):
            leaves = [x.to(kind, copy=True).requires_grad_() for x in (q, k)]
            (info_nce(*leaves, tau, blockwise=Blockwise(tile)) * 40).backward()
            grads.append(torch.cat([leaf.grad.double() for leaf in leaves]))
        assert (grads[1] - grads[0]).norm() < 1e-2 * grads[0].norm()


def test_queued_keys_cost_no_product_for_a_gradient_that_they_do_not_take():
    torch.manual_seed(5)
    q, k, queue = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4), torch.randn(9, 4)
    grads = []
    for keys in (queue, queue.clone().requires_grad_()):
        (grad,) = torch.autograd.grad(info_nce(q, k, negatives=Negatives(keys), blockwise=Blockwise(4)), q)
        grads.append(grad)
    assert torch.equal(*grads)


def test_no_matrix_of_all_logits_is_ever_in_memory(monkeypatch):
    largest = 0
    mm = torch.mm

    def watched(a, b, **options):
        nonlocal largest
        largest = max(largest, len(a) * b.shape[1])
        return mm(a, b, **options)

    monkeypatch.setattr(torch, "mm", watched)
    q = torch.randn(1500, 4, requires_grad=True)
    info_nce(q, q.detach(), blockwise=Blockwise("auto")).backward()
    sigmoid(q, q.detach(), 0.1, -1.0, blockwise=Blockwise("auto")).backward()
    batch_accuracy(q, q)
    assert 0 < largest <= plan.TILE**2


def test_arguments_that_do_not_fit_are_named():
    three, five = torch.randn(3, 4), torch.randn(5, 4)
    ids = {"ids": torch.arange(3)}
    for wrong, message in [
        ({"blockwise": Blockwise(0)}, "tile must be a number from 1 up"),
        ({"blockwise": Blockwise(True)}, "tile must be a number from 1 up"),
        ({"blockwise": Blockwise("large")}, "tile must be a number from 1 up"),
        ({"blockwise": Blockwise(across="star")}, "across must be 'gather', 'ring' or None"),
        (ids | {"negatives": Negatives(five, torch.zeros(5, 2, dtype=torch.long))}, "as many columns as ids"),
        ({"negatives": Negatives(five, owner=torch.tensor([0, 1, 2, 3, -1]))}, "numbers of the 3 rows, or -1"),
        ({"negatives": Negatives(five, owner=torch.tensor([0, 1, 2, 0, -2]))}, "numbers of the 3 rows, or -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            info_nce(three, three, **wrong)
    with pytest.raises(ValueError, match="no rows"):
        info_nce(three[:0], three[:0], blockwise=Blockwise(across="ring"))
