"""Neighbours that are kept right as vectors come and go, against brute force over those that are there."""

from __future__ import annotations

import numpy as np
import pytest

from mmcl.retrieval.held_out import HeldOut, K
from mmcl.runtime.errors import MmclError

RNG = np.random.default_rng(0)


def brute_force(queries, vectors, similarity):
    if similarity == "euclidean":
        return np.argsort(((queries[:, None] - vectors[None]) ** 2).sum(2), axis=1, kind="stable")
    return np.argsort(-queries @ vectors.T, axis=1, kind="stable")


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_neighbours_stay_those_of_brute_force(similarity, closed, tmp_path):
    vectors = RNG.normal(size=(900, 6)).astype("float32")
    own = np.arange(0, 300, 10)
    held = HeldOut(vectors[own], own, similarity)
    for start in range(0, 300, 37):  # blocks smaller than what is kept
        block = vectors[start : min(start + 37, 300)]
        held.extend(block, np.arange(start, start + len(block)))
    there = np.arange(300)  # which vector stands at each place; -1: none
    for step in range(3):
        gone = RNG.choice(np.flatnonzero(there >= 0), 60, replace=False)
        held.removed(np.sort(gone), len(there), closed=closed)
        there = np.delete(there, gone) if closed else np.where(np.isin(np.arange(len(there)), gone), -1, there)
        new = np.arange(300 + 200 * step, 500 + 200 * step)
        held.extend(vectors[new], np.arange(len(there), len(there) + len(new)))
        there = np.append(there, new)
        held.save(tmp_path / "held")
        held = HeldOut.load(tmp_path / "held", similarity, 6, held.count, "mend it")
        places = np.flatnonzero(there >= 0)
        expected = places[brute_force(held.queries, vectors[there[places]], similarity)]
        assert held.count == len(places)
        assert held.enough()
        np.testing.assert_array_equal(held.positions, expected[:, : held.positions.shape[1]])
        present = held.own >= 0
        np.testing.assert_array_equal(there[held.own[present]], own[present])
        assert held.recall(lambda queries, k, expected=expected: expected[:, :k]) == 1.0


def test_recall_is_the_share_of_the_ten_nearest_others():
    vectors = RNG.normal(size=(200, 4)).astype("float32")
    held = HeldOut(vectors[:2], np.array([0, 1]), "euclidean")
    held.extend(vectors, np.arange(200))
    exact = brute_force(vectors[:2], vectors, "euclidean")[:, : K + 1]
    half = exact.copy()
    half[0, 1:6] = 199 - np.arange(5)
    wrong = len(set(half[0, 1:6]) - set(exact[0]))
    assert held.recall(lambda queries, k: half) == pytest.approx(1 - wrong / 20)
    assert held.recall(lambda queries, k: np.full((2, k), -1)) == 0
    assert held.recall(lambda queries, k: exact[:, 1:]) == pytest.approx(0.95, abs=0.06)  # an index without the query


def test_so_many_removed_that_too_few_neighbours_are_known():
    vectors = RNG.normal(size=(400, 4)).astype("float32")
    held = HeldOut(vectors[:3], np.arange(3), "euclidean")
    held.extend(vectors, np.arange(400))
    held.removed(np.sort(brute_force(vectors[:1], vectors, "euclidean")[0, :95]), 400, closed=True)
    assert not held.enough()


def test_a_damaged_file_is_named(tmp_path):
    held = HeldOut(np.eye(3, dtype="float32"), np.arange(3), "dot")
    held.extend(np.eye(3, dtype="float32"), np.arange(3))
    held.save(tmp_path / "held")
    with pytest.raises(MmclError, match="held: damaged, its shapes do not fit"):
        HeldOut.load(tmp_path / "held", "dot", 4, 3, "mend it")
    (tmp_path / "held").write_bytes(b"nothing")
    with pytest.raises(MmclError, match=r"held: damaged .*mend it"):
        HeldOut.load(tmp_path / "held", "dot", 3, 3, "mend it")
