"""The sampler: every row once a pass, exact shares, the same batches for any number of processes and any start."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcl.data.batches.sampler import Sampler, epoch_counts, in_runs

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


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=60),
    longest=st.one_of(st.none(), st.integers(2, 5)),
    seed=st.integers(0, 2**32 - 1),
)
def test_runs_have_every_row_once_and_are_as_even_as_can_be(labels, longest, seed):
    labels = np.array(labels)
    places = in_runs(labels, longest, np.random.default_rng(seed))
    assert sorted(places) == list(range(len(labels)))
    # Cut where the label or the ascent of places ends: at most as many parts as there are runs.
    cuts = np.flatnonzero((np.diff(labels[places]) != 0) | (np.diff(places) < 0)) + 1
    parts = np.split(places, cuts)
    for label in np.unique(labels):
        count = int((labels == label).sum())
        sizes = sorted(len(part) for part in parts if labels[part[0]] == label)
        runs = 1 if longest is None else -(-count // longest)
        assert len(sizes) <= runs
        if len(sizes) == runs:  # no two runs of a label happen to follow each other
            assert sizes[-1] - sizes[0] <= 1


@pytest.mark.parametrize("one_source", [False, True])
def test_rows_of_a_label_stand_together_in_batches_that_processes_share(one_source):
    positions = [np.arange(0, 60), np.arange(60, 100)]
    labels = np.arange(100) % 20  # five rows each, three and two in the sources

    def make(rank=0, world=1):
        options = {"one_source": one_source, "labels": labels, "per_label": 4}
        return Sampler(positions, 10, 5, rank, world, **options)

    epochs = [make().order(epoch)[0] for epoch in range(3)]
    for rows in epochs:
        assert sorted(rows) == list(range(100))
    assert len({tuple(rows) for rows in epochs}) == 3
    batches = np.concatenate(epochs).reshape(-1, 10)
    met = [np.bincount(labels[batch], minlength=20)[labels[batch]] for batch in batches]
    assert (np.concatenate(met) > 1).mean() > 0.8  # by chance 0.3
    shares = [list(make(rank, 2).batches(3, 7)) for rank in range(2)]
    for draw, *parts in zip(make().batches(3, 7), *shares, strict=True):
        assert np.array_equal(draw.rows, np.concatenate([part.rows for part in parts]))


def test_runs_of_every_length_come_anywhere_in_an_epoch():
    labels = np.repeat([0, 1, 2, 3, 4], [40, 1, 1, 1, 1])
    first = [in_runs(labels, None, np.random.default_rng(seed))[0] for seed in range(300)]
    assert 30 < sum(labels[place] == 0 for place in first) < 95  # a fifth of them, and not forty of 44
