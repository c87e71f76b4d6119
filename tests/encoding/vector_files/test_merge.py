"""Vectors of several places in one folder: all of them, of one model, each id once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmcl.encoding import VectorWriter, open_vectors
from mmcl.encoding.vector_files.export import export
from mmcl.encoding.vector_files.merge import merge
from mmcl.runtime.errors import MmclError

ROWS = np.random.default_rng(0).normal(size=(25, 8)).astype("float32")
MODEL = {"model": "m", "encoder": {"weights": "ab", "prompt": ""}, "source": {"modality": "text", "name": "s.csv"}}


def write(folder, ids, rows, labels=None, **changes):
    with VectorWriter(folder, dim=rows.shape[1], **MODEL | changes) as writer:
        writer.append(ids, rows, labels)
    return open_vectors(folder)


def test_vectors_follow_each_other_with_their_ids_and_labels(tmp_path):
    one = write(tmp_path / "a", ["x", "y"], ROWS[:2], ["label x", "label y"])
    other = write(tmp_path / "b", ["z"], ROWS[2:3])
    merge([one, other], tmp_path / "out")
    merged = open_vectors(tmp_path / "out")
    np.testing.assert_array_equal(np.asarray(merged), ROWS[:3])
    assert merged.table().to_pydict() == {"id": ["x", "y", "z"], "label": ["label x", "label y", None]}
    assert (merged.model, merged.encoder) == ("m", one.encoder)
    assert merged.source == {"modality": "text", "name": "s.csv + s.csv"}


@pytest.mark.parametrize(
    ("dtypes", "merged"), [(("float16", "float16"), "float16"), (("float16", "float32"), "float32")]
)
def test_the_numbers_keep_their_kind_if_it_is_one(tmp_path, dtypes, merged):
    sources = [
        write(tmp_path / dtype[5:] / str(n), [n], ROWS[n : n + 1], dtype=dtype) for n, dtype in enumerate(dtypes)
    ]
    merge(sources, tmp_path / "out")
    assert open_vectors(tmp_path / "out").dtype == merged
    np.testing.assert_array_equal(np.asarray(open_vectors(tmp_path / "out")), np.concatenate(sources))


def test_files_of_others_become_a_folder(tmp_path):
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(ROWS.ravel()), 8)
    pq.write_table(pa.table({"id": range(25), "embedding": vectors}), tmp_path / "v.parquet")
    merge([open_vectors(tmp_path / "v.parquet")], tmp_path / "out")
    merged = open_vectors(tmp_path / "out")
    np.testing.assert_array_equal(np.asarray(merged), ROWS)
    assert merged.ids().tolist() == list(range(25))


def test_columns_that_all_have_are_kept(tmp_path, caplog):
    for name, start in (("a", 0), ("b", 3)):
        table = {"id": range(start, start + 3), "embedding": ROWS[start : start + 3].tolist(), "price": [1.5, None, 2]}
        if name == "b":
            table["colour"] = ["red"] * 3
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    with caplog.at_level("WARNING", "mmcl"):
        merge([open_vectors(tmp_path / "a.parquet"), open_vectors(tmp_path / "b.parquet")], tmp_path / "out")
    assert "b.parquet: left out, since not all have them: the columns colour" in caplog.text
    assert open_vectors(tmp_path / "out").table()["price"].to_pylist() == [1.5, None, 2.0] * 2
    export(open_vectors(tmp_path / "out"), tmp_path / "c.parquet", "parquet")
    assert pq.read_table(tmp_path / "c.parquet")["price"].to_pylist() == [1.5, None, 2.0] * 2


def test_ids_in_several_sources(tmp_path, caplog):
    one = write(tmp_path / "books", [1, 1, 2], ROWS[:3])  # twice in one source is no mistake
    other = write(tmp_path / "films", [2, 3], ROWS[3:5])
    with pytest.raises(MmclError, match=r"films: 1 ids are in an earlier source too, such as 2; --duplicates first"):
        merge([one, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge([one, other], tmp_path / "out", duplicates="first")
    assert open_vectors(tmp_path / "out").ids().tolist() == [1, 1, 2, 3]
    np.testing.assert_array_equal(np.asarray(open_vectors(tmp_path / "out")), ROWS[[0, 1, 2, 4]])
    merge([one, other], tmp_path / "prefixed", duplicates="prefix")
    assert open_vectors(tmp_path / "prefixed").ids().tolist() == ["books/1", "books/1", "books/2", "films/2", "films/3"]


def test_numbers_and_texts_become_texts(tmp_path):
    merge([write(tmp_path / "a", [1], ROWS[:1]), write(tmp_path / "b", ["x"], ROWS[1:2])], tmp_path / "out")
    assert open_vectors(tmp_path / "out").ids().tolist() == ["1", "x"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": {"weights": "cd", "prompt": ""}}, "b: its vectors are by other weights or settings than those of"),
        ({"encoder": {"weights": "ab", "prompt": "q: "}}, "b: its vectors are by another prompt than those of"),
        ({"encoder": None, "model": "other"}, "b: vectors by 'other', those of .*a by 'm'"),
        (
            {"source": {"modality": "text", "prompt": "query: "}},
            "b: made with the prompt 'query: ', those of .* with None",
        ),
    ],
)
def test_vectors_of_different_models_are_refused(tmp_path, change, message):
    sources = [write(tmp_path / "a", [1], ROWS[:1]), write(tmp_path / "b", [2], ROWS[1:2], **change)]
    with pytest.raises(MmclError, match=message):
        merge(sources, tmp_path / "out")


def test_other_mistakes(tmp_path):
    one = write(tmp_path / "a", [1], ROWS[:1])
    with pytest.raises(MmclError, match=r"b: vectors of dimension 4, those of .*a of 8"):
        merge([one, write(tmp_path / "b", [2], ROWS[1:2, :4])], tmp_path / "out")
    with pytest.raises(MmclError, match="exists and is not empty"):
        merge([one], tmp_path / "a")
    with pytest.raises(MmclError, match="did you mean 'first'"):
        merge([one], tmp_path / "out", duplicates="firts")
    with pytest.raises(MmclError, match="nothing to merge"):
        merge([], tmp_path / "out")
