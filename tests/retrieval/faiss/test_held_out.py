"""Neighbours that are kept right as vectors come and go, against brute force over those that are there."""

from __future__ import annotations

import numpy as np
import pytest

from mmcl.retrieval.faiss.held_out import HeldOut, K, recalls
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
    np.testing.assert_allclose(held.shares(lambda queries, k: half), [1 - wrong / 10, 1])
    assert held.recall(lambda queries, k: np.full((2, k), -1)) == 0
    assert held.shares(lambda queries, k: exact[:, 1:]).mean() > 0.89  # an index without the query


def test_recalls_are_shares_of_sets():
    found = np.array([RNG.choice(50, 10, replace=False) for _ in range(30)])
    true = np.array([RNG.choice(50, 10, replace=False) for _ in range(30)])
    expected = [len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), true.tolist(), strict=True)]
    np.testing.assert_allclose(recalls(found, true, 10), expected)
    few = np.array([[3, -1, -1, -1], [-1, -1, -1, -1]])  # one neighbour, and none
    np.testing.assert_allclose(recalls(np.array([[3, -1], [-1, -1]]), few, 2), [1, 1])
    np.testing.assert_allclose(recalls(np.array([[-1, -1]]), few[:1], 2), [0])


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_a_query_is_not_its_own_neighbour_and_all_that_share_the_last_place_are(similarity):
    vectors = RNG.normal(size=(300, 4)).astype("float32")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[100:120] = vectors[7]  # twenty more of it
    held = HeldOut.of(vectors[[7, 8]], np.array([7, 8]), similarity)
    held.extend(vectors, np.arange(300))
    nearest = held.nearest()
    assert set(nearest[0]) - {-1} == set(range(100, 120))
    others = [place for place in brute_force(vectors[[8]], vectors, similarity)[0] if place != 8]
    assert set(nearest[1]) - {-1} == set(others[:10])
    np.testing.assert_allclose(held.queries[2:], np.stack([(vectors[7] + vectors[8]) / 2] * 2), atol=1)
    assert held.kinds.tolist() == [0, 0, 1, 1]
    assert held.own.tolist() == [7, 8, -1, -1]


def test_halves_divide_every_kind():
    held = HeldOut(np.zeros((10, 2), "float32"), np.full(10, -1), "dot", np.array([0, 1, 1, 0, 1, 1, 0, 0, 0, 1]))
    for kind, (tuning, measuring) in enumerate(held.halves()):
        assert set(held.kinds[np.append(tuning, measuring)]) == {kind}
        assert not set(tuning) & set(measuring)
        assert abs(len(tuning) - len(measuring)) <= 1
    assert sum(len(half) for halves in held.halves() for half in halves) == 10


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
