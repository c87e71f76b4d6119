"""InfoNCE with any number of positives: against the equations in plain loops in float64, and where they are alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcl.losses import Blockwise, Guide, Negatives, Positives, info_nce


def direction(similarity, positive, candidate, extra, tau, compete, smooth):
    """Of one direction: (N, M) similarities, which are positives and which are candidates, and those of negatives."""
    losses = []
    for i, of_row in enumerate(positive):
        if not of_row.any():
            continue
        rest = [math.exp(s / tau) for s, c, p in zip(similarity[i], candidate[i], of_row, strict=True) if c and not p]
        rest = sum(rest) + sum(math.exp(s / tau) for s in extra[i])
        among = sum(math.exp(s / tau) for s, p in zip(similarity[i], of_row, strict=True) if p)
        terms = []
        for s, p in zip(similarity[i], of_row, strict=True):
            if p:
                terms.append(-math.log(math.exp(s / tau) / (rest + (among if compete else math.exp(s / tau)))))
        loss = np.mean(terms)
        if smooth:
            inside = [s / tau for s, c, p in zip(similarity[i], candidate[i], of_row, strict=True) if c or p]
            inside += [s / tau for s in extra[i]]
            loss = (1 - smooth) * loss + smooth * np.mean([math.log(rest + among) - z for z in inside])
        losses.append(loss)
    return np.mean(losses) if losses else 0.0


def similarity_of(a, b, kind):
    if kind == "euclidean":
        return -np.linalg.norm(a[:, None] - b[None], axis=-1)
    if kind == "cosine":
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return a @ b.T


def agree(a, b):
    return (a[:, None] == b[None]).any(axis=-1)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 8),
    m=st.integers(1, 8),
    itself=st.booleans(),
    extra=st.integers(0, 4),
    masked=st.booleans(),
    symmetric=st.booleans(),
    compete=st.booleans(),
    smooth=st.sampled_from([0.0, 0.2]),
    similarity=st.sampled_from(["cosine", "dot", "euclidean"]),
    tile=st.sampled_from([None, 3, 100]),
    seed=st.integers(0, 10_000),
)
def test_equals_the_equation_in_float64(
    n, m, itself, extra, masked, symmetric, compete, smooth, similarity, tile, seed
):
    rng = np.random.default_rng(seed)
    smooth = smooth if compete else 0.0
    m = n if itself else m
    q, more = rng.normal(size=(n, 5)), rng.normal(size=(extra, 5))
    k = q if itself else rng.normal(size=(m, 5))
    of_q = rng.integers(0, 4, n)
    of_k = of_q if itself else rng.integers(0, 5, m)  # some groups stand on one side only
    ids, key_ids = rng.integers(0, 5, (n, 2)), rng.integers(0, 5, (m, 2))
    key_ids = ids if itself else key_ids
    others = ~np.eye(n, dtype=bool) if itself else np.ones((n, m), dtype=bool)
    positive = (of_q[:, None] == of_k[None]) & others
    candidate = others & ~agree(ids, key_ids) if masked else others
    s = similarity_of(q, k, similarity)
    ways = [direction(s, positive, candidate, similarity_of(q, more, similarity), 0.4, compete, smooth)]
    if symmetric and not itself:
        ways.append(direction(s.T, positive.T, candidate.T, np.zeros((m, 0)), 0.4, compete, smooth))
    got = info_nce(
        torch.tensor(q),
        None if itself else torch.tensor(k),
        0.4,
        positives=Positives(torch.tensor(of_q), None if itself else torch.tensor(of_k), compete),
        ids=(torch.tensor(ids), torch.tensor(key_ids)) if masked else None,
        negatives=Negatives(torch.tensor(more)) if extra else None,
        symmetric=symmetric,
        label_smoothing=smooth,
        similarity=similarity,
        blockwise=Blockwise(tile),
    )
    assert got.dtype == torch.float64
    assert got.item() == pytest.approx(np.mean(ways), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("compete", [True, False])
@pytest.mark.parametrize("tile", [None, 2])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_gradients_of_every_argument_in_float64(similarity, tile, compete):
    torch.manual_seed(1)
    q, k, extra = (torch.randn(count, 4, dtype=torch.float64, requires_grad=True) for count in (4, 7, 3))
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    groups = torch.tensor([0, 1, 2, 9]), torch.tensor([0, 1, 0, 2, 1, 5, 0])
    ids = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 2, 1, 3, 5, 6, 0])

    def loss(q, k, extra, tau):
        positives, where = Positives(*groups, compete), Blockwise(tile)
        options = {"positives": positives, "ids": ids, "negatives": Negatives(extra), "similarity": similarity}
        between = info_nce(q, k, tau, **options, blockwise=where)
        if similarity == "euclidean":  # the distance of a point to itself has no derivative to check by differences
            return between
        among = Positives(groups[1], compete=compete)
        return between + info_nce(k, None, tau, positives=among, similarity=similarity, blockwise=where)

    assert torch.autograd.gradcheck(loss, (q, k, extra, tau))


@pytest.mark.parametrize("compete", [True, False])
@pytest.mark.parametrize("tile", [None, 3])
def test_one_positive_each_is_info_nce_without_groups(tile, compete):
    torch.manual_seed(2)
    q, k = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    ids = torch.randint(4, (7, 2))
    rows = Positives(torch.arange(7), compete=compete)
    options = {"ids": ids, "negatives": Negatives(torch.randn(3, 5).double()), "blockwise": Blockwise(tile)}
    torch.testing.assert_close(info_nce(q, k, 0.1, positives=rows, **options), info_nce(q, k, 0.1, **options))


def test_positives_that_do_not_compete_are_pytorch_metric_learning_s_nt_xent():
    """Theirs is a mean over all positive pairs: over labels of equally many rows, ours."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    torch.manual_seed(3)
    labels = torch.arange(12) % 4
    x = torch.randn(12, 6, dtype=torch.float64, requires_grad=True)
    ours = info_nce(x, None, 0.1, positives=Positives(labels, compete=False))
    results = [(value, *torch.autograd.grad(value, x)) for value in (ours, losses.NTXentLoss(0.1)(x, labels))]
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("compete", [True, False])
@pytest.mark.parametrize("tile", [None, 2])
@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 0, 0, 0], [0, 0, 1, 2], [0]])
def test_rows_without_positives_or_negatives_give_finite_gradients_and_count_for_nothing(labels, tile, compete):
    torch.manual_seed(4)
    x = torch.randn(len(labels), 3, requires_grad=True)
    options = {"positives": Positives(torch.tensor(labels), compete=compete), "blockwise": Blockwise(tile)}
    loss = info_nce(x, None, 0.1, **options)
    (gradient,) = torch.autograd.grad(loss, x)
    assert torch.isfinite(gradient).all()
    if len(set(labels)) == len(labels):
        assert loss == 0
        assert not gradient.any()
    elif labels == [0, 0, 1, 2]:
        z = torch.nn.functional.normalize(x.detach(), dim=1) @ torch.nn.functional.normalize(x.detach(), dim=1).T / 0.1
        first = z[0, 1:].logsumexp(0) - z[0, 1]
        second = z[1, [0, 2, 3]].logsumexp(0) - z[1, 0]
        torch.testing.assert_close(loss.detach(), (first + second) / 2)


@pytest.mark.parametrize("compete", [True, False])
@pytest.mark.parametrize("tile", [None, 16])
@pytest.mark.parametrize("temperature", [0.01, 0.02, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_and_memory_agree_and_are_finite_at_every_temperature(dtype, temperature, tile, compete):
    torch.manual_seed(5)
    x = torch.randn(60, 16).to(dtype).requires_grad_()
    labels = torch.arange(60) % 7
    positives = Positives(labels, compete=compete)
    exact = x.detach().double().requires_grad_()
    results = []
    for vectors, where in ((exact, Blockwise(None)), (x, Blockwise(tile))):
        loss = info_nce(vectors, None, temperature, positives=positives, blockwise=where)
        results.append((loss.detach().double(), torch.autograd.grad(loss, vectors)[0].double()))
    (expected, wanted), (loss, gradient) = results
    torch.testing.assert_close(loss, expected, rtol=1e-2 if dtype is torch.bfloat16 else 1e-5, atol=1e-5)
    error = (gradient - wanted).norm() / wanted.norm()
    assert error < (0.03 if dtype is torch.bfloat16 else 1e-4)


def test_tiles_without_positives_are_not_computed(monkeypatch):
    from mmcl.losses.blockwise import blocks

    made = []
    product = blocks.multiply
    monkeypatch.setattr(blocks, "multiply", lambda *given, **how: made.append(1) or product(*given, **how))
    x, groups = torch.randn(64, 4), torch.arange(64) // 4
    for scattered in (False, True):
        made.clear()
        order = torch.randperm(64, generator=torch.Generator().manual_seed(0)) if scattered else torch.arange(64)
        info_nce(x, None, 0.1, positives=Positives(groups[order]), blockwise=Blockwise(8))
        tiles = len(made) - 64  # the log-sum-exps take all
        assert (tiles > 30) if scattered else (tiles == 8)


def test_what_does_not_fit_is_named():
    x, y, groups = torch.randn(3, 4), torch.randn(5, 4), torch.zeros(3, dtype=torch.int64)
    for arguments, options, message in [
        ((x, None), {}, "without keys queries are compared"),
        ((x, y), {"positives": Positives(groups)}, r"positives\.key must be \(5,\), not \(3,\)"),
        ((x, None), {"positives": Positives(groups[:2])}, r"positives\.query must be \(3,\), not \(2,\)"),
        ((x, y[:, :2]), {"positives": Positives(groups, groups)}, r"\(N, D\) with N ≥ 1 and \(M, D\), not \(3, 4\)"),
        ((x, x), {"positives": Positives(groups), "guide": Guide(x, x)}, "a guide compares with one positive"),
        ((x, None), {"positives": Positives(groups), "ids": torch.zeros(2)}, r"ids must be \(3,\)"),
        ((x, None), {"positives": Positives(groups, compete=False), "label_smoothing": 0.1}, "label_smoothing is over"),
    ]:
        with pytest.raises(ValueError, match=message):
            info_nce(*arguments, **options)
