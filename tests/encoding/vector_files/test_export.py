"""Vectors written for other programs: read again they are the same, and those programs read them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmcl.encoding import VectorWriter, open_vectors
from mmcl.encoding.vector_files.export import export
from mmcl.runtime.errors import MmclError

ROWS = np.random.default_rng(0).normal(size=(25, 8)).astype("float32")
IDS = [f"r{n}" for n in range(25)]
LABELS = [f"label {n}" for n in range(25)]
ENCODER = {"weights": "ab12", "prompt": "query: "}


@pytest.fixture(params=["float32", "float16"])
def stored(tmp_path, request):
    settings = {"dim": 8, "model": "m", "dtype": request.param, "encoder": ENCODER, "source": {"modality": "text"}}
    with VectorWriter(tmp_path / "v", shard_rows=10, **settings) as writer:
        for start in range(0, 25, 5):
            writer.append(IDS[start : start + 5], ROWS[start : start + 5], LABELS[start : start + 5])
    return open_vectors(tmp_path / "v")


@pytest.mark.parametrize(
    ("to", "out"),
    [("npy", "x.npy"), ("npy", "x"), ("parquet", "x.parquet"), ("parquet", "x"), ("clip-retrieval", "x")],
)
def test_exported_vectors_come_back_with_ids_columns_and_model(stored, tmp_path, to, out):
    export(stored, tmp_path / out, to, file_rows=2)
    again = open_vectors(tmp_path / out)
    np.testing.assert_array_equal(np.asarray(again), np.asarray(stored))
    assert again.ids().tolist() == IDS
    assert again.table()["label"].to_pylist() == LABELS
    assert (again.model, again.encoder, again.source) == (stored.model, stored.encoder, stored.source)
    assert again.dtype == ("float32" if to == "parquet" else stored.dtype)


def test_numpy_and_pyarrow_read_them(stored, tmp_path):
    expected = np.asarray(stored)
    export(stored, tmp_path / "x.npy", "npy")
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected)
    export(stored, tmp_path / "x.parquet", "parquet", column="vector")
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column_names == ["id", "label", "vector"]
    np.testing.assert_array_equal(np.stack(table["vector"].to_numpy()), expected)
    assert table["id"].to_pylist() == IDS


def test_the_layout_is_that_of_clip_retrieval(stored, tmp_path):
    export(stored, tmp_path / "x", "clip-retrieval", file_rows=2)
    numbers = [f"{number:02d}" for number in range(13)]
    assert sorted(path.name for path in (tmp_path / "x" / "text_emb").iterdir()) == [
        f"text_emb_{number}.npy" for number in numbers
    ]
    metadata = sorted((tmp_path / "x" / "metadata").iterdir())
    assert [path.name for path in metadata] == [f"metadata_{number}.parquet" for number in numbers]
    captions = [caption for path in metadata for caption in pq.read_table(path)["caption"].to_pylist()]
    assert captions == LABELS


def test_images_have_a_path(tmp_path):
    with VectorWriter(tmp_path / "v", dim=8, model="m", source={"modality": "image"}) as writer:
        writer.append(IDS, ROWS, [f"{name}.jpg" for name in IDS])
    export(open_vectors(tmp_path / "v"), tmp_path / "x", "clip-retrieval")
    table = pq.read_table(tmp_path / "x" / "metadata" / "metadata_0.parquet")
    assert table["image_path"].to_pylist() == [f"{name}.jpg" for name in IDS]
    assert open_vectors(tmp_path / "x").ids().tolist() == IDS


def test_other_columns_go_along(tmp_path):
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(ROWS.ravel()), 8)
    table = pa.table({"id": range(25), "embedding": vectors, "tags": [["a", "b"]] * 25, "price": np.arange(25) / 2})
    pq.write_table(table, tmp_path / "in.parquet")
    for to, out in (("npy", "x.npy"), ("parquet", "y"), ("clip-retrieval", "z")):
        export(open_vectors(tmp_path / "in.parquet"), tmp_path / out, to, file_rows=9)
        again = open_vectors(tmp_path / out).table()
        assert again.select(["id", "tags", "price"]).to_pylist() == table.drop(["embedding"]).to_pylist()


@pytest.mark.parametrize(
    ("to", "out", "message"),
    [
        ("npy", "v", "exists; delete it or choose another --out"),
        ("npy", "x.parquet", "a name for parquet, and --to says npy"),
        ("h5", "x", "--to h5: no such format; known: clip-retrieval, npy, parquet"),
    ],
)
def test_what_cannot_be_written_is_said_before(stored, tmp_path, to, out, message):
    with pytest.raises(MmclError, match=message):
        export(stored, tmp_path / out, to)


@pytest.mark.parametrize(("to", "out"), [("npy", "x.npy"), ("parquet", "x.parquet"), ("npy", "x")])
def test_nan_is_named_and_leaves_nothing(tmp_path, to, out):
    broken = ROWS.copy()
    broken[17, 3] = np.nan
    np.save(tmp_path / "in.npy", broken)
    with pytest.raises(MmclError, match="the vector of id 17 holds NaN"):
        export(open_vectors(tmp_path / "in.npy"), tmp_path / out, to)
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]
