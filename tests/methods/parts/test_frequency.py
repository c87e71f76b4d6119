"""The streaming estimate of how often an item is drawn."""

from __future__ import annotations

import pytest
import torch

from mmcl.methods.parts.frequency import ItemFrequency

POPULARITY = torch.arange(1, 201, dtype=torch.float64) ** -1.0
POPULARITY /= POPULARITY.sum()


def drawn(rows, seed=0):
    return torch.multinomial(POPULARITY, rows, replacement=True, generator=torch.Generator().manual_seed(seed))


def test_the_estimate_comes_close_to_the_true_shares_of_popular_and_rare_items():
    """Items that a batch has many of, one of, or none of: the paper's count of batches would give the first ones 1."""
    frequency = ItemFrequency(buckets=2**16, rate=0.01)
    for step in range(800):
        frequency.update(drawn(256, seed=step))
    error = frequency.log_probability(torch.arange(200)) - POPULARITY.log()
    assert error[:20].abs().max() < 0.2
    assert error.abs().mean() < 0.2


def test_it_follows_a_popularity_that_changes():
    frequency = ItemFrequency(buckets=256, rate=0.05)
    for _ in range(100):
        frequency.update(torch.tensor([1, 2, 2, 2]))
    for _ in range(100):
        frequency.update(torch.tensor([1, 1, 1, 2]))
    assert frequency.log_probability(torch.tensor([1, 2])).exp().tolist() == pytest.approx([0.75, 0.25], rel=0.05)


def test_counts_are_the_shares_themselves():
    rows = drawn(5000)
    frequency = ItemFrequency(buckets=2**16, rate=0.01)
    frequency.count(rows)
    shares = torch.bincount(rows, minlength=200).double() / 5000
    there = shares > 0
    torch.testing.assert_close(
        frequency.log_probability(torch.arange(200))[there].double(), shares[there].log(), atol=1e-6, rtol=1e-6
    )


def test_two_items_in_one_bucket_are_told_apart_by_the_other_hash():
    """With a hundred buckets for two hundred items, one hash alone would call most of them too frequent."""
    rows = drawn(20_000)
    shares = torch.bincount(rows, minlength=200).double() / len(rows)
    frequency = ItemFrequency(buckets=400, rate=0.01)
    frequency.count(rows)
    there = shares > 0
    excess = frequency.log_probability(torch.arange(200)).double()[there] - shares[there].log()
    alone = -frequency.gap[0][frequency._buckets(torch.arange(200))[0]].log()[there] - shares[there].log()
    assert (excess > -1e-6).all()
    assert (excess > 0.01).sum() < 0.5 * (alone > 0.01).sum()


def test_it_is_state_of_the_method():
    one, other = (ItemFrequency(buckets=64, rate=0.1) for _ in range(2))
    one.update(drawn(100))
    other.load_state_dict(one.state_dict())
    for each in (one, other):
        each.update(drawn(100, seed=1))
    assert torch.equal(one.gap, other.gap)
    assert one.checkpointed() == {"last", "gap", "time"}
