"""The index over vectors that stay on disk: what the exact index in memory finds."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from mmcl.encoding import VectorWriter, open_vectors
from mmcl.retrieval import Index, open_index
from mmcl.retrieval.on_disk import DiskIndex
from mmcl.runtime.errors import MmclError

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(size=(300, 8)).astype("float32")
QUERIES = RANDOM.normal(size=(20, 8)).astype("float32")
IDS = [f"r{n}" for n in range(300)]
PRICES = [None if n % 7 == 0 else n / 2 for n in range(300)]


def write(folder, rows=ROWS):
    with VectorWriter(folder, dim=8, model="m", encoder={"weights": "ab", "prompt": ""}, shard_rows=100) as writer:
        for start in range(0, len(rows), 50):
            part = slice(start, start + 50)
            writer.append(IDS[part][: len(rows[part])], rows[part], [f"label {name}" for name in IDS[part]])
    return open_vectors(folder)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("where", [None, "price < 30", "price is null", "price > 1000"])
def test_it_finds_what_the_index_in_memory_finds(tmp_path, similarity, where):
    settings = {"similarity": similarity, "columns": {"price": PRICES}}
    built = DiskIndex.build(write(tmp_path / "v"), **settings)
    built.save(tmp_path / "index")
    index = open_index(tmp_path / "index")
    assert isinstance(index, DiskIndex)
    expected = Index.build(ROWS, ids=IDS, spec="Flat", **settings).search(QUERIES, 7, where=where)
    for found in (built.search(QUERIES, 7, where=where), index.search(QUERIES, 7, where=where)):
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
    assert (len(index), index.model, index.encoder["weights"]) == (300, "m", "ab")


def test_rows_and_vectors_of_ids(tmp_path):
    index = DiskIndex.build(write(tmp_path / "v"), columns={"price": PRICES})
    assert index.rows(["r9", "r2"]).to_pylist() == [
        {"id": "r9", "label": "label r9", "price": 4.5},
        {"id": "r2", "label": "label r2", "price": 1.0},
    ]
    np.testing.assert_array_equal(index.vectors(["r9", "r2"]), ROWS[[9, 2]])
    with pytest.raises(MmclError, match="holds no id 'x'"):
        index.rows(["x"])
    assert index.info()["columns"] == {"price": "numbers"}


def test_what_cannot_be_is_said(tmp_path):
    with pytest.raises(MmclError, match="is over vectors on disk"):
        DiskIndex.build(ROWS)
    with pytest.raises(MmclError, match="unknown similarity 'cosin'; did you mean 'cosine'"):
        DiskIndex.build(write(tmp_path / "w"), similarity="cosin")
    index = DiskIndex.build(write(tmp_path / "v"))
    for change in (lambda: index.add(ROWS[:1], ["x"]), lambda: index.remove(["r1"]), lambda: index.upsert(ROWS, IDS)):
        with pytest.raises(MmclError, match="changes with these"):
            change()


def test_other_vectors_in_the_same_place_are_refused(tmp_path):
    DiskIndex.build(write(tmp_path / "v")).save(tmp_path / "index")
    (tmp_path / "v").rename(tmp_path / "before")
    with pytest.raises(MmclError, match="no such file or folder"):
        open_index(tmp_path / "index")
    for others in (ROWS[:200], ROWS[::-1]):
        write(tmp_path / "v", others)
        with pytest.raises(MmclError, match="are others than those it was built of"):
            open_index(tmp_path / "index")
        shutil.rmtree(tmp_path / "v")


def test_moved_together_they_are_found(tmp_path):
    (tmp_path / "a").mkdir()
    DiskIndex.build(write(tmp_path / "a" / "v")).save(tmp_path / "a" / "index")
    (tmp_path / "a").rename(tmp_path / "b")
    assert open_index(tmp_path / "b" / "index").search(QUERIES, 3)[0].shape == (20, 3)


def test_a_search_says_which_file_holds_a_vector_that_is_none(tmp_path):
    vectors = np.eye(4, 3, dtype=np.float32)
    vectors[2, 1] = np.nan
    np.save(tmp_path / "vectors.npy", vectors)
    index = DiskIndex.build(open_vectors(tmp_path / "vectors.npy"), columns={"n": [0, 1, 2, 3]}, similarity="dot")
    with pytest.raises(MmclError, match=r"/vectors.npy: the vector of row 2 has a NaN"):
        index.search(vectors[0], 2)
    with pytest.raises(MmclError, match=r"/vectors.npy, of what fulfils the condition: the vector of row 1 has a NaN"):
        index.search(vectors[0], 2, where="n > 0")
    assert index.search(vectors[0], 1, where="n < 2")[0].tolist() == [[0]]
