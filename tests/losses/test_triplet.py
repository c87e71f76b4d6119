"""The triplet loss against torch's, and its mining against that of pytorch-metric-learning and plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcl.losses import mined_triplet, triplet

MINING = ("batch_hard", "semi_hard", "all")


def with_gradient(value, *inputs):
    return value, *torch.autograd.grad(value, inputs)


def close(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("margin", [0.2, 3.0])
def test_value_and_gradient_equal_torch_s(margin):
    torch.manual_seed(0)
    triplets = [torch.randn(9, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    theirs = torch.nn.TripletMarginLoss(margin, eps=0.0)(*triplets)
    close(with_gradient(triplet(*triplets, margin), *triplets), with_gradient(theirs, *triplets))
    assert torch.autograd.gradcheck(lambda *given: triplet(*given, margin), triplets)


def mined_by_pytorch_metric_learning(embeddings, labels, margin, mining):
    """Its miners and its loss, on embeddings as they are; its mean over anchors, and over losses that are not 0."""
    distances, losses, miners, reducers = (
        pytest.importorskip(f"pytorch_metric_learning.{part}") for part in ("distances", "losses", "miners", "reducers")
    )
    distance = distances.LpDistance(normalize_embeddings=False)
    if mining == "batch_hard":
        miner, reducer = miners.BatchHardMiner(distance=distance), reducers.MeanReducer()
    else:
        kind = mining.replace("_", "")
        miner = miners.TripletMarginMiner(margin=margin, type_of_triplets=kind, distance=distance)
        reducer = reducers.AvgNonZeroReducer()
    loss = losses.TripletMarginLoss(margin=margin, distance=distance, reducer=reducer)
    return loss(embeddings, labels, miner(embeddings, labels))


@pytest.mark.parametrize("mining", MINING)
@pytest.mark.parametrize(("rows", "classes", "margin"), [(24, 4, 0.2), (24, 4, 2.0), (7, 5, 1.0)])
def test_value_and_gradient_equal_those_of_the_miners_of_pytorch_metric_learning(mining, rows, classes, margin):
    torch.manual_seed(1)
    embeddings = torch.randn(rows, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(classes, (rows,))
    ours = mined_triplet(embeddings, labels, margin, mining=mining)
    theirs = mined_by_pytorch_metric_learning(embeddings, labels, margin, mining)
    assert ours > 0
    close(with_gradient(ours, embeddings), with_gradient(theirs, embeddings))


def reference(points, labels, margin, mining):
    """Every triplet in turn."""
    n, found = len(points), []
    distance = [[(points[i] - points[j]).norm() for j in range(n)] for i in range(n)]
    for a in range(n):
        positives = [distance[a][p] for p in range(n) if p != a and labels[p] == labels[a]]
        negatives = [distance[a][x] for x in range(n) if labels[x] != labels[a]]
        if mining == "batch_hard":
            if positives and negatives:
                found.append((max(positives) - min(negatives) + margin).relu())
            continue
        for near in positives:
            for far in negatives:
                if far < near + margin and (mining == "all" or far > near):
                    found.append(near - far + margin)
    return torch.stack(found).mean() if found else torch.zeros((), dtype=points.dtype)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 9),
    classes=st.integers(1, 4),
    margin=st.sampled_from([0.1, 1.0, 10.0]),
    mining=st.sampled_from(MINING),
    seed=st.integers(0, 10_000),
)
def test_equals_every_triplet_in_turn(n, classes, margin, mining, seed):
    random = torch.Generator().manual_seed(seed)
    points = torch.randn(n, 2, generator=random, dtype=torch.float64)
    labels = torch.randint(classes, (n,), generator=random)
    expected = reference(points, labels.tolist(), margin, mining)
    torch.testing.assert_close(mined_triplet(points, labels, margin, mining=mining), expected)


@pytest.mark.parametrize("mining", MINING)
@pytest.mark.parametrize("labels", [[3, 3, 3], [0, 1, 2], [5]])
def test_a_batch_without_a_triplet_gives_zero_with_a_gradient(mining, labels):
    embeddings = torch.randn(len(labels), 4, requires_grad=True)
    loss, gradient = with_gradient(mined_triplet(embeddings, torch.tensor(labels), mining=mining), embeddings)
    assert loss.item() == 0.0
    assert torch.equal(gradient, torch.zeros_like(embeddings))


@pytest.mark.parametrize("mining", MINING)
def test_equal_embeddings_have_a_finite_gradient(mining):
    embeddings = torch.ones(6, 4, requires_grad=True)
    loss, gradient = with_gradient(mined_triplet(embeddings, torch.arange(6) % 2, mining=mining), embeddings)
    # Nothing is farther than a positive, so that no triplet is semi-hard; all others cost the margin.
    assert loss.item() == pytest.approx(0.0 if mining == "semi_hard" else 0.2)
    assert torch.equal(gradient, torch.zeros_like(embeddings))


@pytest.mark.parametrize("mining", MINING)
def test_accumulated_in_float32_within_autocast(mining):
    torch.manual_seed(2)
    embeddings, labels = torch.randn(64, 16).bfloat16(), torch.arange(64) % 8
    with torch.autocast("cpu", torch.bfloat16):
        inside = mined_triplet(embeddings, labels, mining=mining)
    assert inside.dtype == torch.float32
    outside = mined_triplet(embeddings.double(), labels, mining=mining)
    assert inside.item() == pytest.approx(outside.item(), rel=1e-5)


def test_arguments_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"anchor, positive and negative .*\(3, 4\), \(3, 4\), \(2, 4\)"):
        triplet(torch.ones(3, 4), torch.ones(3, 4), torch.ones(2, 4))
    with pytest.raises(ValueError, match="margin must be above 0, not -1"):
        triplet(*torch.ones(3, 3, 4), margin=-1)
    with pytest.raises(ValueError, match=r"\(N, D\) and \(N,\), not \(3, 4\) and \(2,\)"):
        mined_triplet(torch.ones(3, 4), torch.arange(2))
    with pytest.raises(ValueError, match="mining must be 'batch_hard', 'semi_hard' or 'all', not 'hard'"):
        mined_triplet(torch.ones(3, 4), torch.arange(3), mining="hard")
