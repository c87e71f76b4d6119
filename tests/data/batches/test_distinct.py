"""Batches without duplicates: the property itself, for any rows, and that little else changes."""

from __future__ import annotations

import gc
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcl.data.batches.distinct import Identities, distinct_batches
from mmcl.data.batches.sampler import Sampler


def identities(things):
    """``things[row]`` are what row has."""
    rows = np.repeat(np.arange(len(things)), [len(own) for own in things])
    return Identities(rows, np.array([thing for own in things for thing in own], dtype=np.int64), len(things))


def nothing_twice(batches, things):
    for batch in batches:
        all_things = [thing for row in batch for thing in set(things[row])]
        assert len(all_things) == len(set(all_things))


@st.composite
def tables(draw):
    count = draw(st.integers(8, 120))
    kinds = draw(st.integers(10, 200))
    things = draw(st.lists(st.lists(st.integers(0, kinds), min_size=1, max_size=3), min_size=count, max_size=count))
    return things, draw(st.integers(2, 6)), draw(st.integers(0, 2**32 - 1))


@settings(max_examples=60, deadline=None)
@given(tables())
def test_no_batch_has_anything_twice_and_every_row_comes_unless_asked_for(table):
    things, size, seed = table
    rows = np.random.default_rng(seed).permutation(len(things))
    try:
        places, repeated = distinct_batches(rows, size, identities(things))
    except ValueError:
        return  # too few different things for a batch
    assert places.shape == (len(rows) // size, size)
    batches = rows[places]
    nothing_twice(batches, things)
    assert len(np.unique(places)) >= places.size - repeated
    if not repeated:
        assert len(np.unique(places)) == places.size


def test_rows_that_share_nothing_stay_where_they_are():
    rows = np.random.default_rng(0).permutation(23)
    places, repeated = distinct_batches(rows, 5, identities([[row] for row in range(23)]))
    assert np.array_equal(places.reshape(-1), np.arange(20))
    assert repeated == 0


def test_a_duplicate_moves_to_the_next_batch_and_a_row_makes_space():
    things = [[0], [0], [1], [2], [3], [4]]
    places, repeated = distinct_batches(np.arange(6), 3, identities(things))
    assert sorted(map(len, map(set, places))) == [3, 3]
    assert 0 in places[0]
    assert 1 in places[1]
    assert repeated == 0


def test_an_anchor_that_is_anothers_positive_is_kept_apart():
    things = [[1, 2], [3, 1], [4, 5], [6, 7]]
    places, _ = distinct_batches(np.arange(4), 2, identities(things))
    nothing_twice(places, things)


def test_a_text_in_too_many_rows_is_reported_and_one_in_all_is_refused():
    things = [[0, 10 + row] if row < 6 else [10 + row] for row in range(12)]
    places, repeated = distinct_batches(np.arange(12), 4, identities(things))
    nothing_twice(places, things)
    assert repeated == 3  # six rows with the same text, three batches
    with pytest.raises(ValueError, match="nothing in common"):
        distinct_batches(np.arange(12), 4, identities([[0]] * 12))


def test_spare_rows_stand_in_only_where_a_second_time_of_the_others_does_not_do():
    things = [[7], [7], [6], [8], [5], [8], [7], [5], [6], [5], [5], [6], [1], [2]]
    own = identities(things)
    alone, _ = distinct_batches(np.arange(12), 4, own)
    places, _ = distinct_batches(np.arange(12), 4, own, spare=np.arange(12, 14))
    assert np.array_equal(alone, places)
    with pytest.raises(ValueError, match="nothing in common"):
        distinct_batches(np.arange(12), 5, own)
    places, _ = distinct_batches(np.arange(12), 5, own, spare=np.arange(12, 14))
    nothing_twice(places, things)
    assert (places >= 12).any()


def test_time_is_linear_in_the_rows(request):
    """Every text three times, as in NLI; and one text in a tenth of the rows."""
    gc.disable()  # it would look through whatever other tests have left
    request.addfinalizer(gc.enable)
    seconds = []
    for count in (20_000, 80_000):
        rng = np.random.default_rng(0)
        things = np.stack([rng.integers(0, count // 3, count), rng.integers(0, count, count) + count], axis=1)
        things[: count // 10, 1] = -1
        own = Identities(np.repeat(np.arange(count), 2), things.reshape(-1), count)
        rows = rng.permutation(count)
        start = time.process_time()
        places, _ = distinct_batches(rows, 10, own)
        seconds.append(time.process_time() - start)
        nothing_twice(rows[places], things.tolist())
    assert seconds[1] < 12 * seconds[0] + 0.2


def test_an_epoch_in_the_middle_of_two_passes_takes_the_rows_that_come_next_for_those_it_has_twice():
    own = identities([[row] for row in range(6)])
    sampler = Sampler([np.arange(6)], 4, seed=0, counts=[4], identities=own)
    for epoch in range(30):
        rows, passes = sampler.order(epoch)
        assert len(set(rows.tolist())) == 4
        assert set(passes.tolist()) <= {epoch * 4 // 6, (epoch * 4 + 3) // 6}
    assert sum(sampler.repeated(epoch) > 0 for epoch in range(30)) > 5


# 12 rows at least: of fewer, two by two the same, no batch of 6 could be filled.
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(12, 60), min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from([1, 2, 3]),
    st.integers(0, 30),
    st.integers(0, 2**32 - 1),
)
def test_batches_of_one_source_and_distinct_ones_depend_on_their_number_alone(sizes, distinct, world, start, seed):
    starts = np.cumsum([0, *sizes])
    positions = [np.arange(a, b) for a, b in pairwise(starts)]
    things = [[row // 2] for row in range(starts[-1])]
    own = identities(things) if distinct else None
    common = {"one_source": True, "identities": own}
    full = list(Sampler(positions, 6, seed, **common).batches(0, start + 5))
    shares = [list(Sampler(positions, 6, seed, r, world, **common).batches(start, start + 5)) for r in range(world)]
    for place, draw in enumerate(full[start:]):
        parts = [share[place] for share in shares]
        assert np.array_equal(draw.rows, np.concatenate([part.rows for part in parts]))
        assert np.array_equal(draw.passes, np.concatenate([part.passes for part in parts]))
    for draw in full:
        assert len({int(np.searchsorted(starts, row, side="right")) for row in draw.rows}) == 1
        if distinct:
            nothing_twice([draw.rows], things)


def test_sources_take_turns_in_proportion_to_their_sizes_and_nothing_is_lost():
    positions = [np.arange(25), np.arange(25, 60)]
    sampler = Sampler(positions, 10, seed=0, one_source=True)
    assert (len(sampler), sampler.counts) == (5, [20, 30])
    draws = list(sampler.batches(0, 35))
    kinds = [int(draw.rows[0] >= 25) for draw in draws]
    assert sum(kinds) == 21
    assert len({tuple(kinds[n : n + 5]) for n in range(0, 35, 5)}) > 1, "the order of the sources is drawn anew"
    first = np.concatenate([draw.rows for draw, kind in zip(draws, kinds, strict=True) if not kind])
    counts = np.bincount(first, minlength=25)  # 14 batches of 10 of 25 rows: five passes and a bit
    assert set(counts.tolist()) <= {5, 6}


def test_a_source_smaller_than_a_batch_is_refused():
    with pytest.raises(ValueError, match="source 2 gives an epoch 3 rows, which do not fill a batch of 5"):
        Sampler([np.arange(20), np.arange(20, 23)], 5, 0, one_source=True)
