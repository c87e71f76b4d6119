"""The sampler: every row once a pass, exact shares, the same batches for any number of processes and any start."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcl.data.batches.sampler import Sampler, epoch_counts

POSITIONS = [np.setdiff1d(np.arange(50), [3, 17])]


def test_an_epoch_has_every_row_at_most_once_and_drops_only_the_remainder():
    sampler = Sampler(POSITIONS, 10, seed=1)
    rows = np.concatenate([draw.rows for draw in sampler.batches(0, len(sampler))])
    assert len(sampler) == 4
    assert len(np.unique(rows)) == 40
    assert np.isin(rows, POSITIONS[0]).all()


def test_epochs_and_seeds_differ_and_repeat():
    first, again, other = Sampler(POSITIONS, 8, 1), Sampler(POSITIONS, 8, 1), Sampler(POSITIONS, 8, 2)
    assert np.array_equal(first.order(0)[0], again.order(0)[0])
    assert not np.array_equal(first.order(0)[0], first.order(1)[0])
    assert not np.array_equal(first.order(0)[0], other.order(0)[0])


@st.composite
def mixtures(draw):
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    counts = [draw(st.integers(1, 90)) for _ in sizes]
    starts = np.cumsum([0, *sizes])
    positions = [np.arange(first, first + size) for first, size in zip(starts, sizes, strict=False)]
    return positions, counts, draw(st.integers(0, 2**32 - 1))


@settings(max_examples=60, deadline=None)
@given(mixtures(), st.integers(2, 5))
def test_every_source_gives_its_share_and_repeats_no_row_within_a_pass(mixture, epochs):
    positions, counts, seed = mixture
    sampler = Sampler(positions, 1, seed, counts=counts)
    orders = [sampler.order(epoch) for epoch in range(epochs)]
    for rows, _ in orders:
        assert [int(np.isin(rows, own).sum()) for own in positions] == counts
    rows, passes = (np.concatenate(column) for column in zip(*orders, strict=True))
    for own, count in zip(positions, counts, strict=True):
        full, begun = divmod(count * epochs, len(own))
        for turn in range(full):
            assert sorted(rows[np.isin(rows, own) & (passes == turn)]) == own.tolist()
        last = rows[np.isin(rows, own) & (passes == full)]
        assert len(last) == len(np.unique(last)) == begun


@settings(max_examples=40, deadline=None)
@given(mixtures(), st.integers(0, 30), st.sampled_from([1, 2, 3, 4]))
def test_batches_depend_on_their_number_alone_and_are_shared_by_any_number_of_processes(mixture, start, world):
    positions, counts, seed = mixture
    if sum(counts) < 12:
        counts = [count + 12 for count in counts]
    full = list(Sampler(positions, 12, seed, counts=counts).batches(0, start + 5))
    shares = [
        list(Sampler(positions, 12, seed, r, world, counts=counts).batches(start, start + 5)) for r in range(world)
    ]
    for place, draw in enumerate(full[start:]):
        parts = [share[place] for share in shares]
        assert {part.number for part in parts} == {draw.number}
        assert np.array_equal(draw.rows, np.concatenate([part.rows for part in parts]))
        assert np.array_equal(draw.passes, np.concatenate([part.passes for part in parts]))


def test_consecutive_passes_of_a_source_differ_in_order():
    sampler = Sampler([np.arange(20)], 1, seed=3, counts=[10])
    sets = [set(sampler.order(epoch)[0].tolist()) for epoch in range(6)]
    assert all(sets[n] | sets[n + 1] == set(range(20)) for n in (0, 2, 4))
    assert len({frozenset(half) for half in sets}) > 4


def test_counts_of_an_epoch():
    assert epoch_counts([10, 20], [None, None], [None, None]) == [10, 20]
    assert epoch_counts([10, 20], [5, None], [None, None]) == [5, 20]
    assert epoch_counts([10, 20], [None, None], [1.0, 1.0]) == [15, 15]
    assert epoch_counts([10, 20, 1], [None, 70, 20], [2.0, 1.0, 1.0]) == [50, 25, 25]
    with pytest.raises(ValueError, match="give one to all"):
        epoch_counts([10, 20], [None, None], [1.0, None])
    with pytest.raises(ValueError, match=r"0\.001 gives no row"):
        epoch_counts([10, 20], [None, None], [1.0, 0.001])


@given(st.lists(st.tuples(st.integers(100, 1000), st.floats(0.1, 10)), min_size=1, max_size=5))
def test_weights_are_kept_to_less_than_a_row(sources):
    rows, weights = zip(*sources, strict=True)
    counts = epoch_counts(rows, [None] * len(rows), weights)
    assert sum(counts) == sum(rows)
    assert all(abs(c - w / sum(weights) * sum(rows)) < 1 for c, w in zip(counts, weights, strict=True))


def test_batches_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="evenly"):
        Sampler(POSITIONS, 10, 0, 0, 3)
    with pytest.raises(ValueError, match="do not fill"):
        Sampler(POSITIONS, 49, 0)
