import errno
import json
from pathlib import Path

import numpy as np
import pytest

from mmcl.encoding import VectorWriter, open_vectors
from mmcl.encoding.corpora import shard as shard_module
from mmcl.encoding.quantize import scaled_int8
from mmcl.retrieval import Index
from mmcl.runtime.errors import MmclError

ROWS = np.random.default_rng(0).normal(size=(25, 8)).astype("float32")
SETTINGS = {"dim": 8, "model": "m", "source": {"name": "s.csv", "fingerprint": "f"}, "shard_rows": 10}


def write(folder: Path, start: int = 0, stop: int = 25, finish: bool = True, **changes) -> Path:
    """Blocks of five; ids "r0" … and labels "label 0" …."""
    writer = VectorWriter(folder, **SETTINGS | changes)
    for at in range(start, stop, 5):
        numbers = range(at, min(at + 5, stop))
        writer.append([f"r{n}" for n in numbers], ROWS[at : at + 5][: len(numbers)], [f"label {n}" for n in numbers])
    if finish:
        writer.finish()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_was_written_is_read(tmp_path, dtype):
    stored = open_vectors(write(tmp_path / "v", dtype=dtype))
    assert (len(stored), stored.dim, stored.model, stored.complete) == (25, 8, "m", True)
    assert stored.source == SETTINGS["source"]
    assert stored.ids().tolist() == [f"r{n}" for n in range(25)]
    assert stored.table()["label"].to_pylist() == [f"label {n}" for n in range(25)]
    shards = list(stored.iter_shards())
    assert [len(ids) for ids, _ in shards] == [10, 10, 5]
    assert all(isinstance(block, np.memmap) and block.dtype == dtype for _, block in shards)
    np.testing.assert_array_equal(np.concatenate([block for _, block in shards]), ROWS.astype(dtype))
    stored.verify()


def test_int8_vectors_keep_their_length_and_nearly_their_direction(tmp_path):
    stored = open_vectors(write(tmp_path / "v", dtype="int8"))
    whole = np.asarray(stored)
    assert (stored.dtype, whole.dtype) == (np.int8, np.float32)
    lengths = np.linalg.norm(ROWS, axis=1)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), lengths, rtol=1e-6)
    cosines = (whole * ROWS).sum(axis=1) / lengths**2
    assert cosines.min() > np.cos(np.deg2rad(0.5))
    steps = np.abs(ROWS).max(axis=1, keepdims=True) / 127
    assert (np.abs(whole - ROWS) <= 0.8 * steps).all()  # half a step, and what keeps the length
    positions = np.random.default_rng(1).integers(0, 25, 40)
    np.testing.assert_array_equal(stored.take(positions), whole[positions])
    np.testing.assert_array_equal(np.concatenate([shard for _, shard in stored.iter_shards()]), whole)
    stored.verify()
    flip(tmp_path / "v" / "shard-00001.scales.npy")
    with pytest.raises(MmclError, match=r"shard-00001\.scales\.npy: damaged"):
        open_vectors(tmp_path / "v").verify()


def test_an_int8_vector_depends_on_no_other(tmp_path):
    codes, scales = scaled_int8(np.concatenate([ROWS, np.zeros((1, 8), "float32")]))
    for row in range(25):
        alone = scaled_int8(ROWS[row : row + 1])
        np.testing.assert_array_equal(alone[0][0], codes[row])
        assert alone[1][0] == scales[row]
    assert not codes[-1].any()
    assert scales[-1] == 0


def test_take_gathers_across_shards_in_the_order_asked_for(tmp_path):
    stored = open_vectors(write(tmp_path, dtype="float16"))
    positions = np.random.default_rng(1).integers(0, 25, 40)
    taken = stored.take(positions)
    assert taken.dtype == np.float32
    np.testing.assert_array_equal(taken, ROWS.astype("float16").astype("float32")[positions])
    assert stored.take([]).shape == (0, 8)
    for outside in ([25], [-1]):
        with pytest.raises(IndexError):
            stored.take(outside)


def test_vectors_on_disk_can_be_used_as_an_array(tmp_path):
    write(tmp_path)
    stored = open_vectors(tmp_path)
    array = np.asarray(stored)
    np.testing.assert_array_equal(array, ROWS[:25])
    assert (array.dtype, stored.shape, len(stored)) == (np.float32, (25, 8), 25)
    for index in (3, -1, np.int64(24), slice(5, 22, 3), slice(None, None, -1), [4, -2], np.arange(25) > 20, slice(0)):
        np.testing.assert_array_equal(stored[index], ROWS[:25][index])
    np.testing.assert_array_equal(np.stack(list(stored)), ROWS[:25])
    assert np.array(stored, dtype=np.float64).dtype == np.float64
    with pytest.raises(IndexError):
        stored[25]


def test_integer_ids_stay_integers(tmp_path):
    with VectorWriter(tmp_path, **SETTINGS) as writer:
        writer.append(np.arange(25) * 2, ROWS)
    stored = open_vectors(tmp_path)
    assert stored.ids().dtype == np.int64
    assert stored.ids()[-1] == 48


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_an_index_of_vectors_on_disk_equals_one_of_the_array(tmp_path, dtype):
    stored = open_vectors(write(tmp_path, dtype=dtype))
    on_disk, in_memory = Index.build(stored), Index.build(np.asarray(stored), ids=[f"r{n}" for n in range(25)])
    for a, b in zip(on_disk.search(ROWS[:7]), in_memory.search(ROWS[:7]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert on_disk.model == "m"
    assert on_disk.rows(["r24"])["label"].to_pylist() == ["label 24"]


@pytest.mark.parametrize("stop", [0, 5, 10, 15, 20])
def test_an_interrupted_writer_is_continued_to_the_same_bytes(tmp_path, stop):
    write(tmp_path / "broken", stop=stop, finish=False)
    with pytest.raises(MmclError, match="not finished"):
        open_vectors(tmp_path / "broken")
    assert len(open_vectors(tmp_path / "broken", partial=True)) == stop // 10 * 10
    done = VectorWriter(tmp_path / "broken", **SETTINGS).rows_done
    assert done == stop // 10 * 10
    write(tmp_path / "broken", start=done)
    assert contents(tmp_path / "broken") == contents(write(tmp_path / "whole"))


def test_shards_that_the_manifest_does_not_list_do_not_exist(tmp_path):
    write(tmp_path, stop=10, finish=False)
    for name in ("shard-00001.npy", "shard-00001.ids.parquet", ".shard-00002.npy.77.part", ".manifest.json.7.part"):
        (tmp_path / name).write_bytes(b"half written")
    assert len(open_vectors(tmp_path, partial=True)) == 10
    write(tmp_path, start=10)
    assert contents(tmp_path) == contents(write(tmp_path.with_name("whole")))


def test_rows_done_counts_rows_of_the_source_not_vectors(tmp_path):
    writer = VectorWriter(tmp_path, **SETTINGS)
    writer.skip(3, "r3", "unreadable")
    writer.append(range(9), ROWS[:9], rows_done=10)
    assert writer.rows_done == 0
    writer.append(range(9, 12), ROWS[9:12], rows_done=12)
    writer.skip(12, "r12", "lost with the rows that follow")
    writer = VectorWriter(tmp_path, **SETTINGS)
    assert (writer.rows_done, writer.count) == (12, 12)
    assert writer.skipped["rows"] == [{"row": 3, "id": "r3", "reason": "unreadable"}]
    assert (writer.skipped["count"], writer.skipped_rows()) == (1, [3])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"model": "other"}, "model ('m', now 'other')"),
        ({"dim": 4}, "dim (8, now 4)"),
        ({"dtype": "float16"}, "dtype ('float32', now 'float16')"),
        ({"source": {"name": "s.csv", "fingerprint": "g"}}, "state of s.csv ('f', now 'g')"),
        ({"source": {"name": "t.csv", "fingerprint": "g"}}, "source ('s.csv', now 't.csv')"),
        ({"source": {}}, "source: fingerprint ('f', now None)"),
    ],
)
@pytest.mark.parametrize("finish", [True, False])
def test_another_origin_is_refused_and_what_differs_is_said(tmp_path, change, what, finish):
    write(tmp_path, finish=finish)
    before = contents(tmp_path)
    with pytest.raises(MmclError) as error:
        VectorWriter(tmp_path, **SETTINGS | change)
    assert f"another {what}" in str(error.value)
    assert contents(tmp_path) == before


def test_folders_with_something_else_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for target in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(MmclError, match="another --out"):
            VectorWriter(target, **SETTINGS)
    with pytest.raises(MmclError, match="holds vectors already"):
        VectorWriter(write(tmp_path / "v"), **SETTINGS, resume=False)
    with pytest.raises(MmclError, match=r"holds no vectors; they are"):
        open_vectors(tmp_path)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ((["a"], np.ones((1, 7), "float32")), "shape (1, 7), expected (n, 8)"),
        ((["a", "b"], ROWS[:1]), "2 ids for 1 vectors"),
        ((["a", "b"], ROWS[:2] * np.array([[1], [np.nan]])), "id 'b' holds NaN"),
        ((["a"], ROWS[:1] * 1e6), "more than float16 can"),
        (([1], ROWS[:1]), "all be integers or all strings"),
        ((["a"], ROWS[:1], ["label"]), "labels given with every block or none"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(tmp_path, block, message):
    settings = SETTINGS | {"dtype": "float16", "shard_rows": 1}
    VectorWriter(tmp_path, **settings).append(["first"], ROWS[:1])
    writer = VectorWriter(tmp_path, **settings)
    with pytest.raises(MmclError) as error:
        writer.append(*block)
    assert message in str(error.value)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("name", ["shard-00001.npy", "shard-00001.ids.parquet"])
def test_a_damaged_shard_is_named(tmp_path, name, damage):
    write(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(MmclError, match=f"{name}: (damaged|missing)"):
        open_vectors(tmp_path).verify()
    if damage is not flip:  # sizes are compared without being asked
        with pytest.raises(MmclError, match=name):
            open_vectors(tmp_path)
        with pytest.raises(MmclError, match=name):
            VectorWriter(tmp_path, **SETTINGS)


READ_ALL = {
    "index": Index.build,
    "array": np.asarray,
    "iteration": list,
    "shards": lambda vectors: list(vectors.iter_shards()),
    "take": lambda vectors: vectors.take(range(10, 20)),
    "slice": lambda vectors: vectors[5:21],
}


@pytest.mark.parametrize("read", READ_ALL)
def test_whoever_reads_a_full_shard_notices_a_flipped_bit(tmp_path, read):
    write(tmp_path)
    stored = open_vectors(tmp_path)
    flip(tmp_path / "shard-00001.npy")
    assert stored.take([3, 24]).shape == (2, 8)
    with pytest.raises(MmclError, match=r"shard-00001\.npy: damaged, its SHA-256"):
        READ_ALL[read](stored)


@pytest.mark.parametrize("read", ["ids", "table"])
def test_whoever_reads_the_ids_notices_a_flipped_bit(tmp_path, read):
    flip(write(tmp_path) / "shard-00002.ids.parquet")
    with pytest.raises(MmclError, match=r"shard-00002\.ids\.parquet: damaged"):
        getattr(open_vectors(tmp_path), read)()


def test_a_damaged_shard_is_not_revised(tmp_path):
    write(tmp_path, finish=False)
    flip(tmp_path / "shard-00000.npy")
    writer = VectorWriter(tmp_path, **SETTINGS)
    with pytest.raises(MmclError, match=r"shard-00000\.npy: damaged"):
        writer.revise(0, [1], ROWS[:1], writer.table(0).slice(1, 1))


def test_a_shard_of_another_shape_than_the_manifest_says_is_named(tmp_path):
    write(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["shards"][1]["rows"], manifest["count"] = 9, 24
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MmclError, match=r"shard-00001\.npy: holds \(10, 8\) float32, the manifest says \(9, 8\)"):
        open_vectors(tmp_path).verify()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "does not describe"),
        ('{"format": "mmcl vectors", "format_version": 1, "mmcl_version": "0"}', "damaged"),
        ('{"format": "mmcl vectors", "format_version": 99, "mmcl_version": "9.1"}', r"newer mmcl \(9\.1.*upgrade"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_answered_in_one_line(tmp_path, content, message):
    write(tmp_path)
    (tmp_path / "manifest.json").write_text(content)
    for use in (lambda: open_vectors(tmp_path), lambda: VectorWriter(tmp_path, **SETTINGS)):
        with pytest.raises(MmclError, match=message) as error:
            use()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        (("format_version",), None, "'format_version' is"),
        (("format_version",), "1", "'format_version' is"),
        (("dim",), None, "'dim' is missing"),
        (("dtype",), "float64", "'dtype' is 'float64'"),
        (("count",), 24, "'count' is 24, its shards have 25"),
        (("dim",), 2**40, "'dim' is 1099511627776"),
        (("dim",), 2**20, "'shard-00000.npy' is too small"),
        (("shards", 1, "rows"), -1, r"'shards\.1\.rows' is -1"),
        (("shards", 1, "name"), "../../secret", r"'shards\.1\.name' is"),
        (("encoder",), "x", "'encoder' is 'x'"),
        (("skipped", "ranges"), [[0, 2**62]], "'skipped.ranges' are more rows"),
        (("skipped", "rows"), None, "'skipped.rows' is missing"),
        (("skipped", "rows"), [{"row": 0, "id": "r0"}], "'skipped.rows.0.reason' is missing"),
        (("shards",), "x" * 1000, "'shards' is 'x+"),
        (("shards", 1), [], r"'shards\.1' is \[\]"),
        (("shards", 1, "rows"), "ten", r"'shards\.1\.rows' is 'ten'"),
        (("shards", 2, "rows_done"), None, r"'shards\.2\.rows_done' is missing"),
        (("shards", 1, "files"), None, r"'shards\.1\.files' is missing"),
        (("shards", 1, "files"), {}, r"'shard-00001\.npy' is not among the files"),
        (("shards", 0, "files", "shard-00000.ids.parquet", "bytes"), None, r"ids\.parquet\.bytes' is missing"),
    ],
)
def test_a_damaged_entry_of_a_manifest_is_named_by_whoever_reads_it(tmp_path, entry, value, message):
    write(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    *above, last = entry
    owner = manifest
    for key in above:
        owner = owner[key]
    if value is None:
        del owner[last]
    else:
        owner[last] = value
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    before = contents(tmp_path)
    for use in (lambda: open_vectors(tmp_path), lambda: VectorWriter(tmp_path, **SETTINGS)):
        with pytest.raises(MmclError, match=rf"manifest\.json: damaged, .*{message}.*; ") as error:
            use()
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < len(str(tmp_path)) + 200
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff",
        b"\x93NUMPY\x01\x00\x10\x00" + b"{'descr': [(('a', ",
        b"\x93NUMPY\x01\x00\x10\x00" + b"\xff\xfe" * 8,
        b"\x93NUMPY\x01\x00\x40\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (2**70, 8)}".ljust(64),
        b"\x93NUMPY\x01\x00\x50\x00" + b"{'descr':'|O','fortran_order':False,'shape':(10,8)}".ljust(80),
        b"\x93NUMPY\x01\x00\x50\x00" + b"{'descr':'<f4','fortran_order':False,'shape':(99999999999999,8)}".ljust(80),
    ],
)
def test_a_header_that_numpy_cannot_read_is_one_line(tmp_path, header):
    write(tmp_path)
    path = tmp_path / "shard-00001.npy"
    path.write_bytes(header.ljust(path.stat().st_size, b"\0"))
    with pytest.raises(MmclError, match=r"shard-00001\.npy: (cannot be read|holds)") as error:
        open_vectors(tmp_path).take([12])
    assert "\n" not in str(error.value)


def test_a_full_disk_leaves_the_listed_shards_and_nothing_half_written(tmp_path, monkeypatch):
    def full(path, table):
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = VectorWriter(tmp_path, **SETTINGS)
    writer.append(range(10), ROWS[:10])
    monkeypatch.setattr(shard_module, "write_table", full)
    with pytest.raises(OSError, match="No space left"), writer:
        writer.append(range(10, 20), ROWS[10:20])
    assert sorted(contents(tmp_path)) == ["manifest.json", "shard-00000.ids.parquet", "shard-00000.npy"]
    assert len(open_vectors(tmp_path, partial=True)) == 10


def test_an_empty_source_gives_empty_vectors(tmp_path):
    VectorWriter(tmp_path, **SETTINGS).finish()
    stored = open_vectors(tmp_path)
    assert len(stored) == 0
    assert stored.ids().shape == (0,)
    assert stored.take([]).shape == (0, 8)
