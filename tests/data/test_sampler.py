"""The sampler: every row once an epoch, the same batches for any number of processes and from any start."""

from __future__ import annotations

import numpy as np
import pytest

from mmcl.data.sampler import Sampler

POSITIONS = np.setdiff1d(np.arange(50), [3, 17])


def test_an_epoch_has_every_row_at_most_once_and_drops_only_the_remainder():
    sampler = Sampler(POSITIONS, 10, seed=1)
    rows = np.concatenate([rows for _, rows in sampler.batches(0, len(sampler))])
    assert len(sampler) == 4
    assert len(np.unique(rows)) == 40
    assert np.isin(rows, POSITIONS).all()


def test_epochs_and_seeds_differ_and_repeat():
    first, again, other = Sampler(POSITIONS, 8, 1), Sampler(POSITIONS, 8, 1), Sampler(POSITIONS, 8, 2)
    assert np.array_equal(first.order(0), again.order(0))
    assert not np.array_equal(first.order(0), first.order(1))
    assert not np.array_equal(first.order(0), other.order(0))


@pytest.mark.parametrize("start", [0, 3, 4, 9])
def test_starting_in_the_middle_gives_the_rest(start):
    sampler = Sampler(POSITIONS, 10, seed=1)
    whole = list(sampler.batches(0, 12))[start:]
    part = list(sampler.batches(start, 12))
    assert [number for number, _ in whole] == [number for number, _ in part]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(whole, part, strict=True))


def test_processes_share_each_global_batch():
    alone = [rows for _, rows in Sampler(POSITIONS, 12, 5).batches(0, 6)]
    shares = [[rows for _, rows in Sampler(POSITIONS, 12, 5, rank, 3).batches(0, 6)] for rank in range(3)]
    for number, batch in enumerate(alone):
        assert np.array_equal(batch, np.concatenate([share[number] for share in shares]))


def test_batches_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="evenly"):
        Sampler(POSITIONS, 10, 0, 0, 3)
    with pytest.raises(ValueError, match="do not fill"):
        Sampler(POSITIONS, 49, 0)
