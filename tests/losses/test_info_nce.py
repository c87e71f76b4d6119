"""InfoNCE against open_clip's loss, and against the equation written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcl.losses import batch_accuracy, info_nce


def reference(q, k, tau, ids=None, negatives=None, negative_ids=None, symmetric=True, similarity="cosine", smooth=0.0):
    """The equation, one row at a time, in float64 numpy."""

    def sim(a, b):
        if similarity == "cosine":
            return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        return a @ b if similarity == "dot" else -np.linalg.norm(a - b)

    def direction(a, b, extra):
        total = 0.0
        for i in range(len(a)):
            terms = [
                math.exp(sim(a[i], b[j]) / tau)
                for j in range(len(b))
                if j == i or ids is None or not np.any(ids[i] == ids[j])
            ]
            terms += [
                math.exp(sim(a[i], extra[m]) / tau)
                for m in range(len(extra))
                if negative_ids is None or not np.any(ids[i] == negative_ids[m])
            ]
            total -= (1 - smooth) * math.log(math.exp(sim(a[i], b[i]) / tau) / sum(terms))
            total -= smooth / len(terms) * sum(math.log(term / sum(terms)) for term in terms)
        return total / len(a)

    forward = direction(q, k, [] if negatives is None else negatives)
    return (forward + direction(k, q, [])) / 2 if symmetric else forward


def test_value_and_gradients_equal_open_clip():
    from open_clip.loss import ClipLoss

    torch.manual_seed(0)
    image, text = torch.randn(48, 32), torch.randn(48, 32)
    results = []
    for ours in (True, False):
        a, b = image.clone().requires_grad_(), text.clone().requires_grad_()
        scale = torch.tensor(math.log(1 / 0.07), requires_grad=True)
        if ours:
            loss = info_nce(a, b, (-scale).exp())
        else:
            loss = ClipLoss()(F.normalize(a, dim=1), F.normalize(b, dim=1), scale.exp())
        loss.backward()
        results.append((loss.detach(), a.grad, b.grad, scale.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 9),
    m=st.integers(0, 5),
    d=st.integers(2, 7),
    columns=st.integers(0, 2),
    masked=st.booleans(),
    symmetric=st.booleans(),
    similarity=st.sampled_from(["cosine", "dot", "euclidean"]),
    smooth=st.sampled_from([0.0, 0.1, 0.9]),
    seed=st.integers(0, 10_000),
)
def test_equals_the_equation_in_float64(n, m, d, columns, masked, symmetric, similarity, smooth, seed):
    rng = np.random.default_rng(seed)
    q, k, extra = rng.normal(size=(n, d)), rng.normal(size=(n, d)), rng.normal(size=(m, d))
    ids = rng.integers(0, 4, size=(n, columns)) if columns else None
    negative_ids = rng.integers(0, 4, size=(m, columns)) if columns and m and masked else None
    expected = reference(q, k, 0.5, ids, extra if m else None, negative_ids, symmetric, similarity, smooth)

    def tensor(values):
        return None if values is None else torch.tensor(values[:, 0] if columns == 1 else values)

    got = info_nce(
        torch.tensor(q),
        torch.tensor(k),
        0.5,
        ids=tensor(ids),
        negatives=torch.tensor(extra) if m else None,
        negative_ids=tensor(negative_ids),
        symmetric=symmetric,
        similarity=similarity,
        label_smoothing=smooth,
    )
    assert got.dtype == torch.float64
    assert got.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("smooth", [0.0, 0.2])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_gradients_of_every_argument_in_float64(similarity, smooth):
    torch.manual_seed(1)
    q, k, extra = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 1, 0, 2, 1])

    def loss(q, k, extra, tau):
        return info_nce(q, k, tau, ids=ids, negatives=extra, similarity=similarity, label_smoothing=smooth)

    assert torch.autograd.gradcheck(loss, (q, k, extra, tau))


def test_label_smoothing_is_that_of_torch_where_nothing_is_masked():
    torch.manual_seed(5)
    q, k, extra = torch.randn(12, 8), torch.randn(12, 8), torch.randn(5, 8)
    logits = F.normalize(q, dim=1) @ F.normalize(torch.cat([k, extra]), dim=1).T / 0.07
    partners = torch.arange(12)
    there = F.cross_entropy(logits, partners, label_smoothing=0.1)
    back = F.cross_entropy(logits[:, :12].T, partners, label_smoothing=0.1)
    got = info_nce(q, k, 0.07, negatives=extra, label_smoothing=0.1)
    torch.testing.assert_close(got, (there + back) / 2, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_the_smallest_temperature_and_accumulated_in_float32(dtype):
    torch.manual_seed(2)
    q = torch.randn(64, 16).to(dtype).requires_grad_()
    loss = info_nce(q, -q.detach(), 0.01)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert loss > 90
    assert torch.isfinite(q.grad).all()


def test_autocast_does_not_lower_the_precision_of_the_loss():
    torch.manual_seed(3)
    q, k = torch.randn(32, 64), torch.randn(32, 64)
    with torch.autocast("cpu", torch.bfloat16):
        inside = info_nce(q, k, 0.01)
    assert inside.item() == info_nce(q, k, 0.01).item()


def test_a_batch_of_one_thing_has_no_negatives_and_no_loss():
    q, k = torch.randn(6, 3), torch.randn(6, 3)
    assert info_nce(q, k, ids=torch.zeros(6, dtype=torch.long)).item() == 0.0


def test_accuracy_counts_strict_wins_and_ignores_repeats():
    q = torch.eye(4)
    k = torch.eye(4)
    k[1] = k[0]  # rows 0 and 1 tie for query 0, and query 1 finds nothing
    assert batch_accuracy(q, k).item() == 0.5
    assert batch_accuracy(q, k, ids=torch.tensor([7, 7, 1, 2])).item() == 0.75


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        info_nce(torch.randn(3, 4), torch.randn(4, 4))
    with pytest.raises(ValueError, match="ids must be"):
        info_nce(torch.randn(3, 4), torch.randn(3, 4), ids=torch.zeros(2))
    with pytest.raises(ValueError, match="negatives must be"):
        info_nce(torch.randn(3, 4), torch.randn(3, 4), negatives=torch.randn(2, 5))
    with pytest.raises(ValueError, match="go with ids"):
        info_nce(torch.randn(3, 4), torch.randn(3, 4), negatives=torch.randn(2, 4), negative_ids=torch.zeros(2))
    with pytest.raises(ValueError, match="label_smoothing must be"):
        info_nce(torch.randn(3, 4), torch.randn(3, 4), label_smoothing=1.0)
    with pytest.raises(ValueError, match="similarity must be"):
        info_nce(torch.randn(3, 4), torch.randn(3, 4), similarity="manhattan")
