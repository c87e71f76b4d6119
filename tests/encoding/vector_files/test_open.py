"""Vectors in .npy, Parquet and clip-retrieval's folders, opened: the numbers, ids and columns that were written."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmcl.encoding import Vectors, VectorWriter, open_vectors
from mmcl.encoding.vector_files import file_vectors
from mmcl.retrieval import Index
from mmcl.runtime.errors import MmclError

ROWS = np.random.default_rng(0).normal(size=(25, 8)).astype("float32")
IDS = [f"r{n}" for n in range(25)]


def fixed(rows: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


def as_npy(folder):
    np.save(folder / "v.npy", ROWS)
    (folder / "v.ids.txt").write_text("\n".join(IDS))
    return folder / "v.npy"


def as_npy_folder(folder):
    for number, start in enumerate(range(0, 25, 2)):  # part-10 comes after part-9
        np.save(folder / f"part-{number}.npy", ROWS[start : start + 2])
        np.save(folder / f"part-{number}.ids.npy", np.array(IDS[start : start + 2]))
    return folder


def as_parquet(folder):
    table = pa.table({"_id": IDS, "embedding": fixed(ROWS), "price": np.arange(25)})
    pq.write_table(table, folder / "v.parquet", row_group_size=7)
    return folder / "v.parquet"


def as_parquet_folder(folder):
    for number, start in enumerate(range(0, 25, 6)):
        part = slice(start, start + 6)
        pq.write_table(pa.table({"id": IDS[part], "emb": ROWS[part].tolist()}), folder / f"{number}.parquet")
    return folder


def as_clip_retrieval(folder):
    (folder / "img_emb").mkdir()
    (folder / "metadata").mkdir()
    for number, start in enumerate((0, 20)):
        part = slice(start, start + 20)
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", ROWS[part])
        columns = {"image_path": IDS[part], "caption": [f"caption {name}" for name in IDS[part]]}
        pq.write_table(pa.table(columns), folder / "metadata" / f"metadata_{number}.parquet")
    return folder


WRITE = [as_npy, as_npy_folder, as_parquet, as_parquet_folder, as_clip_retrieval]


@pytest.mark.parametrize("write", WRITE)
def test_what_others_wrote_is_read(tmp_path, write, monkeypatch):
    monkeypatch.setattr(file_vectors, "BLOCK_BYTES", 4 * 8 * 3)  # three vectors at a time
    opened = open_vectors(write(tmp_path))
    assert (len(opened), opened.dim, opened.dtype, opened.shape) == (25, 8, "float32", (25, 8))
    assert opened.ids().tolist() == IDS
    blocks = list(opened.iter_shards())
    assert max(len(block) for _, block in blocks) <= 3
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), ROWS)
    assert np.concatenate([ids for ids, _ in blocks]).tolist() == IDS
    np.testing.assert_array_equal(np.asarray(opened), ROWS)
    positions = np.random.default_rng(1).integers(0, 25, 40)
    np.testing.assert_array_equal(opened.take(positions), ROWS[positions])
    np.testing.assert_array_equal(opened[-3:], ROWS[-3:])
    assert opened.take([]).shape == (0, 8)
    for outside in ([25], [-1]):
        with pytest.raises(IndexError):
            opened.take(outside)


@pytest.mark.parametrize("write", WRITE)
def test_an_index_of_them_equals_one_of_the_array(tmp_path, write):
    on_disk, in_memory = Index.build(open_vectors(write(tmp_path))), Index.build(ROWS, ids=IDS)
    for one, other in zip(on_disk.search(ROWS[:7]), in_memory.search(ROWS[:7]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_folder_of_ours_opens_as_before(tmp_path):
    with VectorWriter(tmp_path, dim=8, model="m") as writer:
        writer.append(IDS, ROWS)
    assert isinstance(open_vectors(tmp_path), Vectors)


def test_without_ids_they_are_positions(tmp_path):
    np.save(tmp_path / "a.npy", ROWS[:10])
    np.save(tmp_path / "b.npy", ROWS[10:])
    assert open_vectors(tmp_path).ids().tolist() == list(range(25))


def test_other_columns_are_kept_and_captions_are_labels(tmp_path):
    table = open_vectors(as_parquet(tmp_path)).table()
    assert table.column_names == ["id", "_id", "price"]
    assert table["price"].to_pylist() == list(range(25))
    (tmp_path / "clip").mkdir()
    table = open_vectors(as_clip_retrieval(tmp_path / "clip")).table()
    assert table["label"].to_pylist() == [f"caption {name}" for name in IDS]


@pytest.mark.parametrize(("dtype", "read"), [("float16", "float16"), ("float64", "float32"), ("int8", "float32")])
def test_numbers_of_other_kinds(tmp_path, dtype, read):
    rows = (ROWS * 10).astype(dtype)
    np.save(tmp_path / "v.npy", rows)
    opened = open_vectors(tmp_path / "v.npy")
    assert opened.dtype == read
    np.testing.assert_array_equal(np.concatenate([block for _, block in opened.iter_shards()]), rows.astype(read))


def test_the_column_of_vectors_can_be_named(tmp_path):
    columns = {"id": IDS, "title_vector": fixed(ROWS), "body_vector": fixed(-ROWS)}
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    with pytest.raises(MmclError, match="several columns hold vectors: title_vector, body_vector; name one"):
        open_vectors(tmp_path / "v.parquet")
    opened = open_vectors(tmp_path / "v.parquet", column="body_vector")
    np.testing.assert_array_equal(np.asarray(opened), -ROWS)
    assert opened.table().column_names == ["id"]
    with pytest.raises(MmclError, match="no column 'body'; did you mean 'body_vector'"):
        open_vectors(tmp_path / "v.parquet", column="body")


def test_a_folder_with_images_and_texts_asks_which(tmp_path):
    as_clip_retrieval(tmp_path)
    (tmp_path / "text_emb").mkdir()
    np.save(tmp_path / "text_emb" / "text_emb_0.npy", -ROWS[:20])
    np.save(tmp_path / "text_emb" / "text_emb_1.npy", -ROWS[20:])
    with pytest.raises(MmclError, match=r"of images and of texts; name .*img_emb or .*text_emb"):
        open_vectors(tmp_path)
    opened = open_vectors(tmp_path / "text_emb")
    np.testing.assert_array_equal(np.asarray(opened), -ROWS)
    assert opened.ids().tolist() == IDS


def two_dimensions(folder):
    np.save(folder / "a.npy", ROWS)
    np.save(folder / "b.npy", ROWS[:, :4])


def one_axis(folder):
    np.save(folder / "a.npy", ROWS[0])


def objects(folder):
    np.save(folder / "a.npy", np.array([{"a": 1}], dtype=object))


def packed_bits(folder):
    np.save(folder / "a.npy", np.zeros((3, 2), np.uint8))


def too_few_ids(folder):
    np.save(folder / "a.npy", ROWS)
    (folder / "a.ids.txt").write_text("x\ny\n")


def truncated(folder):
    np.save(folder / "a.npy", ROWS)
    (folder / "a.npy").write_bytes((folder / "a.npy").read_bytes()[:-9])


def no_parquet(folder):
    (folder / "a.parquet").write_bytes(b"PAR1 not really")


def no_vectors(folder):
    pq.write_table(pa.table({"id": [1, 2]}), folder / "a.parquet")


def ragged(folder):
    pq.write_table(pa.table({"embedding": [[1.0, 2.0], [3.0]]}), folder / "a.parquet")


def missing(folder):
    pq.write_table(pa.table({"embedding": [[1.0, 2.0], None]}), folder / "a.parquet")


def holes(folder):
    pq.write_table(pa.table({"embedding": [[1.0, 2.0], [3.0, None]]}), folder / "a.parquet")


def mixed_ids(folder):
    pq.write_table(pa.table({"id": ["x"], "embedding": [[1.0, 2.0]]}), folder / "a.parquet")
    pq.write_table(pa.table({"id": [7], "embedding": [[1.0, 2.0]]}), folder / "b.parquet")


def no_metadata(folder):
    as_clip_retrieval(folder)
    (folder / "metadata" / "metadata_1.parquet").unlink()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (two_dimensions, r"b\.npy: vectors of dimension 4, those of a\.npy of 8"),
        (one_axis, r"a\.npy: holds an array of shape \(8,\)"),
        (objects, r"a\.npy: holds Python objects, which are never loaded"),
        (packed_bits, r"a\.npy: holds uint8; vectors are float32"),
        (too_few_ids, r"a\.ids\.txt: holds 2 ids, a\.npy 25 vectors"),
        (truncated, r"a\.npy: cannot be read as \.npy"),
        (no_parquet, r"a\.parquet: cannot be read as Parquet"),
        (no_vectors, r"a\.parquet: no column holds lists of numbers; it has id"),
        (ragged, r"a\.parquet: row 1 has a vector of dimension 1, the first one has 2"),
        (missing, r"a\.parquet: row 1 has no vector in column 'embedding'"),
        (holes, r"a\.parquet: the vector of row 1 in column 'embedding' lacks components"),
        (mixed_ids, "its files have columns of different types"),
        (no_metadata, r"metadata_1\.parquet: missing, the ids of img_emb_1\.npy should be there"),
        (lambda folder: None, "holds no vectors; they are a folder of `mmcl encode`"),
    ],
)
def test_what_cannot_be_used_is_answered_in_one_line(tmp_path, write, message):
    write(tmp_path)
    with pytest.raises(MmclError, match=message) as error:
        Index.build(open_vectors(tmp_path))
    assert "\n" not in str(error.value)


def test_a_path_that_is_none(tmp_path):
    with pytest.raises(MmclError, match="no such file or folder"):
        open_vectors(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(MmclError, match="holds no vectors that can be read"):
        open_vectors(tmp_path / "notes.txt")
