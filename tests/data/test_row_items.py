"""Items of rows: which of them each draw takes."""

from __future__ import annotations

import numpy as np
import torch

from mmcl.data.row_items import all_items, choose_item


def test_draws_of_a_row_go_through_all_its_items_before_one_comes_again():
    counts, seeds = np.array([1, 2, 5, 3]), torch.arange(4) * 1000
    draws = np.stack([choose_item(counts, seeds, draw) for draw in range(10)])
    for row, count in enumerate(counts):
        for start in range(0, 10 - count, count):
            assert sorted(draws[start : start + count, row]) == list(range(count))


def test_the_items_of_a_draw_are_uniform_and_belong_to_the_row_s_seed_alone():
    counts, seeds = np.full(6000, 3), torch.arange(6000)
    pairs = np.stack([choose_item(counts, seeds, draw) for draw in range(2)])
    seen = np.bincount(pairs[0] * 3 + pairs[1], minlength=9)
    assert (seen[[0, 4, 8]] == 0).all()
    assert (abs(seen[[1, 2, 3, 5, 6, 7]] - 1000) < 4 * 30).all()  # four standard deviations
    # Also of what stands beside it in the batch.
    mixed = choose_item(np.array([3, 7]), seeds[40:42], 0)
    assert mixed[0] == pairs[0, 40]


def test_all_items_of_rows_in_any_order():
    items, owner = all_items(np.array([0, 2, 2, 5]), np.array([2, 0, 1, 2]))
    assert items.tolist() == [2, 3, 4, 0, 1, 2, 3, 4]
    assert owner.tolist() == [0, 0, 0, 1, 1, 3, 3, 3]
