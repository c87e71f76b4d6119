"""Indexes that take and lose vectors, against indexes built anew and against brute force."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
import pytest
import torch

from mmcl.encoding import VectorWriter, open_vectors
from mmcl.retrieval import Index
from mmcl.runtime.errors import MmclError

SIMILARITIES = ["cosine", "dot", "euclidean"]
DELETING = ["Flat", "IVF16,Flat", "RR16,IVF16,SQ8", "SQ8", "IVF16,SQ8,RFlat", "IVF16,PQ8x4fsr,Refine(SQ8)"]
MASKING = ["HNSW16", "PQ8x4fs", "HNSW16_SQ8"]


def clusters(count: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(20, dim))
    return (centres[rng.integers(0, 20, count)] + 0.3 * rng.normal(size=(count, dim))).astype("float32")


VECTORS, QUERIES = clusters(1_200), clusters(40, seed=5)


def nearest(queries, vectors, k, similarity):
    if similarity == "cosine":
        queries, vectors = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, vectors))
    euclidean = similarity == "euclidean"
    scores = -((queries[:, None] - vectors[None]) ** 2).sum(2) if euclidean else queries @ vectors.T
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def recall(found, expected):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), expected.tolist(), strict=True)])


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("spec", DELETING + MASKING)
def test_what_is_added_is_found_and_what_is_removed_is_not(spec, similarity, tmp_path):
    names = np.array([f"v{row}" for row in range(1_200)])
    numbers = np.arange(1_200)
    index = Index.build(VECTORS[:800], ids=names[:800], spec=spec, similarity=similarity, columns={"n": numbers[:800]})
    there = np.arange(800)
    for start in (800, 1_000):
        index.add(VECTORS[start : start + 200], names[start : start + 200], columns={"n": numbers[start : start + 200]})
        gone = np.random.default_rng(start).choice(there, 150, replace=False)
        index.remove(names[gone])
        there = np.setdiff1d(np.append(there, np.arange(start, start + 200)), gone)
        for opened in (index, reopened(index, tmp_path)):
            assert len(opened) == len(there)
            ids, scores = opened.search(QUERIES, k=10)
            assert set(ids.ravel()) <= set(names[there])
            exact = names[there][nearest(QUERIES, VECTORS[there], 10, similarity)]
            lossy = "fs" in spec and "Refine" not in spec
            assert recall(ids, exact) >= (0.3 if lossy else 1 if spec == "Flat" else 0.9)
            assert (np.diff(scores, axis=1) <= 0).all()
            if not lossy:
                own, _ = opened.search(VECTORS[there[:50]] if similarity != "dot" else QUERIES, k=1)
                if similarity != "dot":
                    assert (own.ravel() == names[there[:50]]).mean() > 0.97
            assert opened.rows(names[there])["n"].to_pylist() == numbers[there].tolist()
    assert (index.info()["removed"] == 0) == (spec in DELETING)


def reopened(index, folder):
    index.save(folder / "index")
    return Index.load(folder / "index")


@pytest.mark.parametrize("spec", ["Flat", "IVF16,Flat", "HNSW16"])
def test_stored_vectors_come_back_by_id(spec):
    index = Index.build(VECTORS[:600], spec=spec, similarity="euclidean")
    index.remove([3, 100, 599])
    index.add(VECTORS[600:700], np.arange(600, 700))
    wanted = [5, 4, 650, 598]
    np.testing.assert_array_equal(index.vectors(wanted), VECTORS[wanted])
    with pytest.raises(MmclError, match=r"the index holds no id 100; it has such as 0"):
        index.vectors([5, 100])


@pytest.mark.parametrize("spec", ["Flat", "IVF16,Flat", "HNSW16"])
def test_upsert_replaces_and_adds(spec):
    index = Index.build(VECTORS[:500], spec=spec, similarity="euclidean", labels=["old"] * 500)
    index.upsert(VECTORS[1_000:1_020], np.arange(490, 510), columns={"label": ["new"] * 20})
    assert len(index) == 510
    ids, scores = index.search(VECTORS[1_000:1_020], k=1)
    np.testing.assert_array_equal(ids.ravel(), np.arange(490, 510))
    np.testing.assert_allclose(scores, 0, atol=1e-3)
    assert index.rows([489, 490, 509])["label"].to_pylist() == ["old", "new", "new"]
    assert 490 not in index.search(VECTORS[[490]], k=1)[0]


def test_equal_ids_are_removed_together_and_replaced_together():
    index = Index.build(np.eye(4), ids=["a", "b", "a", "c"])
    index.remove(["a"])
    assert sorted(index.search(np.ones(4), k=4)[0][0]) == ["b", "c"]
    index.add(np.eye(4)[:2], ["b", "d"])
    index.upsert(np.eye(4)[[3, 2]], ["b", "b"])
    assert sorted(index.search(np.ones(4), k=9)[0][0]) == ["b", "b", "c", "d"]


@pytest.mark.parametrize("spec", ["Flat", "IVF8,Flat", "HNSW16"])
def test_after_changes_an_index_answers_as_one_built_anew(spec):
    index = Index.build(VECTORS[:1_000], spec=spec)
    gone = np.arange(0, 1_000, 10)
    index.remove(gone)
    index.add(VECTORS[1_000:], np.arange(1_000, 1_200))
    index.upsert(VECTORS[1:50:2] * 2 + 0.5, np.arange(1, 50, 2))
    kept = np.setdiff1d(np.arange(1_200), gone)
    now = VECTORS.copy()
    now[1:50:2] = VECTORS[1:50:2] * 2 + 0.5
    anew = Index.build(now[kept], ids=kept, spec=spec)
    exact = Index.build(now[kept], ids=kept).search(QUERIES, k=10)[0]
    if spec == "Flat":
        np.testing.assert_array_equal(np.sort(index.search(QUERIES, k=10)[0]), np.sort(exact))
    assert recall(index.search(QUERIES, k=10)[0], exact) >= recall(anew.search(QUERIES, k=10)[0], exact) - 0.02


def test_recall_is_measured_again_after_growth_and_said(caplog, tmp_path):
    caplog.set_level(logging.INFO, "mmcl")
    index = Index.build(clusters(3_000), spec="IVF32,Flat")
    assert index.info()["recall"] >= 0.95
    assert "measured again" not in caplog.text
    # What comes lies elsewhere, in few of the cells.
    new = np.random.default_rng(3).normal(size=(3_000, 16)).astype("float32")
    index.add(new, np.arange(3_000, 6_000))
    assert "recall@10 of 6,000 vectors, measured again on held-out queries" in caplog.text
    index.add(clusters(10, seed=8), np.arange(6_000, 6_010))
    caplog.clear()
    index.save(tmp_path / "index")
    assert "recall@10 of 6,010 vectors" in caplog.text
    caplog.clear()
    Index.load(tmp_path / "index").save(tmp_path / "index")
    assert caplog.text == ""


def test_a_recall_below_the_stated_one_is_warned_of(caplog):
    index = Index.build(clusters(2_000), spec="PQ2x4", recall=0.9)
    index.add(clusters(400, seed=2), np.arange(2_000, 2_400))
    assert "below the stated 0.9" in caplog.text
    assert "mmcl index build" in caplog.text
    assert index.info()["recall"] < 0.9


def test_it_is_said_when_an_index_is_due_to_be_built_anew(caplog):
    graph = Index.build(clusters(500), spec="HNSW16")
    graph.remove(np.arange(100))
    assert graph.info()["rebuild"] is None
    graph.remove(np.arange(100, 150))
    assert graph.info()["rebuild"] == "150 of its 500 vectors are removed, and still compared"
    assert "due to be built anew: 150 of its 500" in caplog.text
    cells = Index.build(clusters(500), spec="IVF8,Flat")
    cells.add(clusters(1_600, seed=2), np.arange(500, 2_100))
    assert cells.info()["rebuild"] == "its cells were made for 500 vectors and hold 2,100"


def test_places_of_removed_vectors_are_never_returned_though_all_neighbours_are_removed():
    index = Index.build(VECTORS, spec="HNSW16", similarity="euclidean")
    near = nearest(QUERIES[:1], VECTORS, 800, "euclidean")[0]
    index.remove(near)
    ids, _ = index.search(QUERIES[:1], k=10)
    left = np.setdiff1d(np.arange(1_200), near)
    np.testing.assert_array_equal(ids[0], left[nearest(QUERIES[:1], VECTORS[left], 10, "euclidean")[0]])


def test_a_graph_that_cannot_grow_says_so_and_still_removes():
    index = Index.build(VECTORS[:300], spec="NSG8")
    with pytest.raises(MmclError, match=r"an index of spec 'NSG8' cannot grow .*mmcl index build"):
        index.add(VECTORS[300:310], np.arange(300, 310))
    index.remove(np.arange(100))
    left = np.arange(100, 300)
    ids, _ = index.search(QUERIES, k=10)
    assert recall(ids, left[nearest(QUERIES, VECTORS[left], 10, "cosine")]) > 0.99


BAD_ADDS = {
    "the vectors have 15 dimensions, those of the index have 16": (VECTORS[:2, :15], ["x", "y"], {"n": [1, 2]}),
    "id 'y' holds NaN": (np.array([VECTORS[0], VECTORS[1] * np.nan]), ["x", "y"], {"n": [1, 2]}),
    "id 'x' is a zero vector": (np.zeros((1, 16)), ["x"], {"n": [1]}),
    "1 ids for 2 vectors": (VECTORS[:2], ["x"], {"n": [1, 2]}),
    "the ids are whole numbers, those of the index text": (VECTORS[:2], [1, 2], {"n": [1, 2]}),
    "the index has a column 'n'; give its values": (VECTORS[:2], ["x", "y"], None),
    "the index has no column 'm'; did you mean": (VECTORS[:2], ["x", "y"], {"n": [1, 2], "nn": [1, 2]}),
    "column 'n' of the index holds numbers, and the new values are text": (VECTORS[:2], ["x", "y"], {"n": ["1", "2"]}),
    "1 values of column 'n' for 2 vectors": (VECTORS[:2], ["x", "y"], {"n": [1]}),
    "shape (2,)": ([1.0, 2.0], ["x", "y"], None),
    "give one for each": (VECTORS[:2], None, {"n": [1, 2]}),
}


@pytest.mark.parametrize("how", ["add", "upsert"])
@pytest.mark.parametrize("message", BAD_ADDS)
def test_a_mistaken_addition_changes_nothing(message, how):
    vectors, ids, columns = BAD_ADDS[message]
    index = Index.build(
        VECTORS[:300], ids=[f"v{row}" for row in range(300)], spec="IVF4,Flat", columns={"n": range(300)}
    )
    before = index.search(QUERIES, k=300)
    with pytest.raises(MmclError) as error:
        getattr(index, how)(vectors, ids, columns=columns)
    assert message.replace("'m'", "'nn'") in str(error.value)
    for a, b in zip(before, index.search(QUERIES, k=300), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(index) == 300


def test_a_mistaken_removal_changes_nothing():
    index = Index.build(VECTORS[:3], ids=["a", "b", "c"])
    with pytest.raises(MmclError, match="the index holds no id 'x'; it has such as 'a'"):
        index.remove(["a", "x"])
    with pytest.raises(MmclError, match="no vector would be left"):
        index.remove(["a", "b", "c"])
    assert len(index) == 3
    index.remove([])
    index.add(np.empty((0, 16)), [])
    assert len(index) == 3


def test_tensors_and_an_index_with_numbers_grow():
    index = Index.build(torch.eye(3))
    index.add(torch.ones(2, 3, dtype=torch.bfloat16), torch.tensor([7, 8]))
    assert index.search([1.0, 1.0, 1.0], k=2)[0].tolist() == [[7, 8]]


def test_columns_that_vectors_on_disk_have_are_metadata_of_the_index():
    class Windows:
        """Of long texts, as `mmcl encode --long chunk` writes them."""

        dim, model = 16, None

        def __len__(self):
            return 4

        def table(self):
            return pa.table({"id": ["a", "a", "b", "b"], "start": pa.array([0, 80, 0, 80], pa.int32())})

        def iter_shards(self):
            yield None, VECTORS[:4]

        def take(self, indices):
            return VECTORS[indices]

    index = Index.build(Windows())
    assert index.search(VECTORS[0], k=4, where="start >= 80")[0].shape == (1, 2)
    assert index.info()["columns"] == {"start": "numbers"}
    index.add(Windows())
    assert len(index) == 8


def written(folder, ids, weights, model="m", labels=None):
    encoder = {"weights": weights, "prompt": ""} if weights else None
    with VectorWriter(folder, dim=16, model=model, encoder=encoder) as writer:
        writer.append(ids, VECTORS[: len(ids)], labels)
    return open_vectors(folder)


def test_vectors_on_disk_bring_ids_and_labels_and_only_those_of_the_same_model(tmp_path):
    index = Index.build(written(tmp_path / "a", ["a", "b"], "w1", labels=["A", "B"]))
    index.add(written(tmp_path / "b", ["c"], "w1", model="the same elsewhere", labels=["C"]))
    assert index.rows(["a", "c"])["label"].to_pylist() == ["A", "C"]
    for weights, model, message in [
        ("w2", "m", "of model 'm' with other weights or another prompt"),
        ("w2", "n", "of model 'n', those of the index of 'm'"),
        (None, "n", "of model 'n', those of the index of 'm'"),
    ]:
        with pytest.raises(MmclError, match=message):
            index.add(written(tmp_path / f"{weights}{model}", ["d"], weights, model))
    index.add(written(tmp_path / "e", ["e"], None))  # of an older mmcl, which kept no fingerprint
    assert len(index) == 4
