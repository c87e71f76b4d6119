"""Searches limited by conditions find what brute force over the rows that fulfil them finds."""

from __future__ import annotations

import numpy as np
import pytest

from mmcl.retrieval import Index
from mmcl.retrieval.faiss import search, selection
from mmcl.runtime.errors import MmclError

COUNT, DIM = 6_000, 16
SPECS = ["Flat", "IVF64,Flat", "HNSW16", "RR16,IVF32,SQ8", "IVF32,SQ8,RFlat"]
SHARES = {"half": 0.5, "5%": 0.05, "0.5%": 0.005, "0.05%": 0.0005}


def made(seed=0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(50, DIM))
    of = rng.integers(0, 50, COUNT)
    return (centres[of] + 0.35 * rng.normal(size=(COUNT, DIM))).astype("float32"), of


VECTORS, CLUSTER = made()
QUERIES = made(1)[0][:60]
draws = np.random.default_rng(7).permutation(COUNT) / COUNT
COLUMNS = {"draw": draws, "cluster": CLUSTER, "tags": [["a", "b"] if number % 2 else ["c"] for number in CLUSTER]}


@pytest.fixture(scope="module", params=SPECS)
def index(request):
    return Index.build(VECTORS, spec=request.param, columns=COLUMNS)


@pytest.fixture(params=["gathered", "by selector"])
def way(request, monkeypatch):
    """Exact search of the rows that a condition leaves, and the search by FAISS where they are too many for that."""
    if request.param == "by selector":
        monkeypatch.setattr(selection, "GATHERED_BYTES", 0)
        monkeypatch.setattr(search, "_EDGES", 0)
    return request.param


def expected(allowed, queries=QUERIES, k=10):
    rows = np.flatnonzero(allowed)
    unit = VECTORS[rows] / np.linalg.norm(VECTORS[rows], axis=1, keepdims=True)
    scores = queries @ unit.T
    return rows[np.argsort(-scores, axis=1, kind="stable")[:, :k]]


def recall(found, wanted):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), wanted.tolist(), strict=True)])


@pytest.mark.parametrize("share", SHARES)
def test_recall_stays_whatever_share_of_the_rows_a_condition_leaves(index, way, share):
    index._selections.clear()
    most = SHARES[share]
    where, allowed = f"draw < {most}", draws < most
    ids, scores = index.search(QUERIES, k=10, where=where)
    assert ids.shape == (60, min(10, allowed.sum()))
    assert allowed[ids].all()
    assert recall(ids, expected(allowed)) >= 0.95
    assert (np.diff(scores, axis=1) <= 0).all()
    again, _ = index.search(QUERIES, k=10, where=where)
    np.testing.assert_array_equal(again, ids)


@pytest.mark.parametrize(
    "where", ["cluster = 3", "cluster < 25", "tags contains 'c' and cluster != 2", "not cluster in (1, 4)"]
)
def test_recall_stays_where_the_rows_that_are_left_lie_apart_from_the_queries(index, way, where):
    index._selections.clear()
    allowed = {
        "cluster = 3": CLUSTER == 3,
        "cluster < 25": CLUSTER < 25,
        "tags contains 'c' and cluster != 2": (CLUSTER % 2 == 0) & (CLUSTER != 2),
        "not cluster in (1, 4)": ~np.isin(CLUSTER, [1, 4]),
    }[where]
    ids, _ = index.search(QUERIES, k=10, where=where)
    assert recall(ids, expected(allowed)) >= 0.95


def test_conditions_hold_after_removals_and_additions(index):
    allowed = CLUSTER == 5
    gone = np.flatnonzero(allowed)[::2]
    changed = Index.build(VECTORS, spec=index.spec, columns=COLUMNS)
    changed.search(QUERIES, where="cluster = 5")
    changed.remove(gone)
    left = allowed.copy()
    left[gone] = False
    assert recall(changed.search(QUERIES, where="cluster = 5")[0], expected(left)) >= 0.95
    changed.add(
        QUERIES, np.arange(COUNT, COUNT + 60), columns={"draw": [None] * 60, "cluster": [5] * 60, "tags": [[]] * 60}
    )
    found = changed.search(QUERIES, k=1, where="cluster = 5")[0]
    assert (found.ravel() == np.arange(COUNT, COUNT + 60)).mean() > 0.95


def test_codes_are_compared_by_their_own_measure_and_those_ranked_again_by_the_finer_vectors():
    allowed = CLUSTER == 3
    columns = {"cluster": CLUSTER}
    coarse = Index.build(VECTORS, spec="IVF16,PQ8x4fs", columns=columns)
    found = coarse.search(QUERIES, where="cluster = 3")[0]
    assert allowed[found].all()
    ranked_again = Index.build(VECTORS, spec="IVF16,PQ8x4fs,Refine(SQ8)", columns=columns)
    assert recall(ranked_again.search(QUERIES, where="cluster = 3")[0], expected(allowed)) > 0.95


def test_a_condition_that_nothing_fulfils_gives_nothing(index):
    ids, scores = index.search(QUERIES, where="draw > 2")
    assert ids.shape == scores.shape == (60, 0)


def test_searches_keep_what_conditions_gathered_up_to_a_limit(monkeypatch):
    monkeypatch.setattr("mmcl.retrieval.faiss.selection.GATHERED_BYTES", 4 * DIM * 500)
    index = Index.build(VECTORS, columns={"n": np.arange(COUNT)})
    for start in range(0, COUNT, 300):
        where = f"n between {start} and {start + 199}"
        np.testing.assert_array_equal(index.search(VECTORS[[start]], k=1, where=where)[0], [[start]])
        assert where in index._selections
        assert len(index._selections) <= 2


def test_ids_and_labels_are_columns_too():
    index = Index.build(np.eye(3), ids=["a", "b", "c"], labels=["one", "two", "three"])
    assert index.search(np.ones(3), where="id in ('a', 'c')")[0].tolist() == [["a", "c"]]
    assert index.search(np.ones(3), where="label like 't%'")[0].tolist() == [["b", "c"]]
    with pytest.raises(MmclError, match="where is a list; a condition is text"):
        index.search(np.ones(3), where=["id", "=", "a"])
    with pytest.raises(MmclError, match="there is no column 'lable'; did you mean 'label'"):
        index.search(np.ones(3), where="lable = 'one'")


def test_equal_scores_stand_in_the_order_of_positions_under_a_condition():
    index = Index.build(np.ones((3_000, 4)), columns={"even": [row % 2 == 0 for row in range(3_000)]})
    assert index.search(np.ones(4), k=3, where="even")[0].tolist() == [[0, 2, 4]]
    assert index.search(np.ones(4), k=3, where="not even")[0].tolist() == [[1, 3, 5]]
