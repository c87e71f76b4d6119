"""Cuts of texts by length, against every way to cut them."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from mmcl.models.text.grouping import group_by_length


def time_of(lengths, groups, cost):
    return sum(lengths[start] * (stop - start) + cost for start, stop in groups)


def every_way(lengths, most):
    """All cuts into groups that are not too large."""
    count = len(lengths)
    for pieces in range(count):
        for inner in combinations(range(1, count), pieces):
            cuts = [0, *inner, count]
            groups = list(pairwise(cuts))
            if all(lengths[a] * (b - a) <= most or b - a == 1 for a, b in groups):
                yield groups


@pytest.mark.parametrize("seed", range(20))
def test_no_other_cuts_take_less_time(seed):
    rng = np.random.default_rng(seed)
    lengths = sorted(rng.integers(1, 60, size=11).tolist(), reverse=True)
    cost = int(rng.integers(0, 80))
    groups = group_by_length(lengths, 10_000, cost)
    assert time_of(lengths, groups, cost) == min(time_of(lengths, way, cost) for way in every_way(lengths, 10_000))


@pytest.mark.parametrize("seed", range(20))
def test_every_text_is_in_one_group_and_no_group_is_too_large(seed):
    rng = np.random.default_rng(seed)
    lengths = [*sorted(rng.integers(1, 9, size=rng.integers(0, 400)).tolist(), reverse=True), 1]
    groups = group_by_length([90, *lengths], 64, 5)
    assert [text for start, stop in groups for text in range(start, stop)] == list(range(1 + len(lengths)))
    assert groups[0] == (0, 1)  # too long for any group
    assert all(lengths[start - 1] * (stop - start) <= 64 for start, stop in groups[1:])


def test_equal_texts_are_split_evenly():
    assert group_by_length([10] * 9, 40, 5) == [(0, 3), (3, 6), (6, 9)]
    assert group_by_length([], 40, 5) == []
