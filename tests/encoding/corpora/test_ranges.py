"""Shards that own ranges: any order, any number of writers, killed at any moment, and the same bytes in the end."""

import io
import json
import logging
import random
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmcl.data.sources import open_source
from mmcl.data.sources.tar.rows import open_rows
from mmcl.encoding import Layout, VectorWriter, encode_range, encode_source, open_job, open_vectors
from mmcl.encoding.corpora.ranges import Ranges
from mmcl.runtime.errors import MmclError

from . import tiny
from .hashed import TEXTS, HashEncoder, contents, expected, rows

SMALL = Layout(shard_rows=10, batch_rows=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.tiny_encoder().save(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def table(tmp_path):
    """A thousand rows, of which some are empty."""
    texts = [None if n % 97 == 3 else text for n, text in enumerate(tiny.sentences(1000))]
    pq.write_table(pa.table({"id": [f"r{n}" for n in range(1000)], "text": texts}), tmp_path / "s.parquet")
    return tmp_path / "s.parquet"


def command(*arguments):
    return [sys.executable, tiny.__file__, *map(str, arguments)]


def in_a_process(*arguments) -> str:
    return subprocess.run(command(*arguments), check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(("total", "size", "begin"), [(33, 10, 0), (30, 10, 0), (33, 10, 13), (0, 10, 0), (5, 10, 5)])
def test_every_row_has_one_owner(tmp_path, total, size, begin):
    ranges = Ranges(tmp_path, total, size, begin, first=3)
    assert [row for number in ranges.numbers for row in ranges.rows(number)] == list(range(begin, total))
    assert all(ranges.owner(row) == number for number in ranges.numbers for row in ranges.rows(number))
    assert all(0 < len(ranges.rows(number)) <= size for number in ranges.numbers)


def test_ranges_in_any_order_give_the_same_bytes(tmp_path):
    source = rows(tmp_path / "s", text=[None if n in (3, 31) else text for n, text in enumerate(TEXTS)])
    encode_source(HashEncoder(), source, "text", tmp_path / "alone", layout=SMALL)
    jobs = [open_job(HashEncoder(), source, "text", tmp_path / "shared", layout=SMALL) for _ in range(2)]
    order = random.Random(0).sample(jobs[0].missing(), 4)
    assert order != sorted(order)
    for turn, number in enumerate(order):
        with pytest.raises(MmclError, match=f"{4 - turn} shards are missing"):
            jobs[0].finish()
        assert encode_range(jobs[turn % 2], number)
        assert not encode_range(jobs[0], number)  # it is there
        partial = open_vectors(tmp_path / "shared", partial=True)
        assert len(partial) > 0
        partial.verify()
    assert jobs[1].finish()
    assert jobs[0].missing() == []
    assert not encode_range(jobs[0], order[0])
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_ranges_of_a_stream_of_tar_shards_in_any_order_too(tmp_path):
    for shard in range(3):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for sample in range(11):
                content = f"sample {shard} {sample}".encode()
                member = tarfile.TarInfo(f"{sample:03}.txt")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    source = str(tmp_path / "{0..2}.tar")
    alone = encode_source(HashEncoder(), open_rows(source), "text", tmp_path / "alone", layout=SMALL)
    np.testing.assert_array_equal(
        np.asarray(alone), expected([f"sample {shard} {sample}" for shard in range(3) for sample in range(11)])
    )
    job = open_job(HashEncoder(), open_rows(source), "text", tmp_path / "shared", layout=SMALL)
    assert all(encode_range(job, number) for number in (2, 0, 3, 1))
    assert job.finish()
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_a_range_that_another_is_encoding_is_left_to_it(tmp_path):
    job = open_job(HashEncoder(), rows(tmp_path / "s", text=TEXTS), "text", tmp_path / "out", layout=SMALL)
    claim = job.ranges.claim(2)
    assert not encode_range(job, 2)
    assert encode_range(job, 0)
    claim.release()
    assert encode_range(job, 2)


@pytest.mark.parametrize("which", ["first", "last"])
def test_an_encode_that_an_older_version_began_is_completed(tmp_path, which):
    source = rows(tmp_path / "s", text=TEXTS)
    alone = encode_source(HashEncoder(), source, "text", tmp_path / "alone", layout=SMALL)
    old = VectorWriter(tmp_path / "old", dim=16, model="hash", source=alone.source, shard_rows=7)
    old.skip(5, "5", "empty text")
    done = 7 if which == "first" else 33
    for start in range(0, done, 7):
        stop = min(start + 7, done)
        old.append([str(n) for n in range(start, stop)], expected(TEXTS[start:stop]), TEXTS[start:stop])
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    for key in ("shard_rows", "truncated"):
        del manifest[key]
    for shard in manifest["shards"]:
        del shard["start"]
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest | {"format_version": 1}))
    stored = encode_source(HashEncoder(), source, "text", tmp_path / "old", layout=SMALL)
    np.testing.assert_array_equal(np.asarray(stored), expected(TEXTS))
    assert stored.ids().tolist() == [str(n) for n in range(33)]
    assert stored.skipped["count"] == 1
    assert [entry["row"] for entry in stored.rejects()] == [5]
    stored.verify()


def test_a_folder_keeps_the_length_of_range_it_began_with(tmp_path):
    source = rows(tmp_path / "s", text=TEXTS)
    job = open_job(HashEncoder(), source, "text", tmp_path / "out", layout=SMALL)
    encode_range(job, 1)
    stored = encode_source(HashEncoder(), source, "text", tmp_path / "out", layout=Layout(shard_rows=5, batch_rows=4))
    assert [len(ids) for ids, _ in stored.iter_shards()] == [10, 10, 10, 3]


def test_a_writer_of_arrays_does_not_touch_an_encode_that_is_not_finished(tmp_path):
    source = rows(tmp_path / "s", text=TEXTS)
    job = open_job(HashEncoder(), source, "text", tmp_path / "out", layout=SMALL)
    encode_range(job, 0)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    before = contents(tmp_path / "out")
    with pytest.raises(MmclError, match="an encode is not finished there"):
        VectorWriter(tmp_path / "out", dim=16, model="hash", source=manifest["source"])
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("wrong", ["{", '{"format": "mmcl vectors shard", "format_version": 2, "shard": 3}'])
def test_a_damaged_description_of_a_shard_is_named(tmp_path, wrong):
    job = open_job(HashEncoder(), rows(tmp_path / "s", text=TEXTS), "text", tmp_path / "out", layout=SMALL)
    encode_range(job, 0)
    (tmp_path / "out" / "shard-00000.json").write_text(wrong)
    with pytest.raises(MmclError, match=r"shard-00000\.json: damaged"):
        open_vectors(tmp_path / "out", partial=True)


def test_two_processes_at_once_share_one_folder(tmp_path, model, table):
    both = [
        subprocess.Popen(command("slowly", model, table, tmp_path / "out", 0.05), stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    encode_source(tiny_copy(model), open_source(table), "text", tmp_path / "alone", layout=Layout("float32", 100, 25))
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def tiny_copy(model):
    import mmcl

    return mmcl.load(model, device="cpu", dtype="float32")


def test_killed_twenty_times_the_result_is_that_of_an_undisturbed_encode(tmp_path, model, table):
    struck = in_a_process("killed", model, table, tmp_path / "out", 20, 1)
    assert int(struck) >= 5
    encode_source(tiny_copy(model), open_source(table), "text", tmp_path / "alone", layout=Layout("float32", 100, 25))
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_a_full_disk_in_the_midst_of_a_shard_leaves_the_complete_ones(tmp_path, model):
    texts = [text if n < 50 or n >= 100 else None for n, text in enumerate(tiny.sentences(300))]
    pq.write_table(pa.table({"text": texts}), tmp_path / "s.parquet")
    limited = ("limited", model, tmp_path / "s.parquet", tmp_path / "out", 6000)  # bytes; 100 vectors are 6,528
    done = subprocess.run(command(*limited), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "File too large" in done.stderr
    assert len(open_vectors(tmp_path / "out", partial=True)) == 50
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"manifest.json", *(f"shard-00000.{kind}" for kind in ("npy", "ids.parquet", "json"))}
    stored = encode_source(tiny_copy(model), open_source(tmp_path / "s.parquet"), "text", tmp_path / "out")
    assert len(stored) == 250
    stored.verify()


def test_processes_of_their_own_compute_the_same(tmp_path, model, table):
    encoder = tiny_copy(model)
    here = encode_source(encoder, open_source(table), "text", tmp_path / "here", layout=Layout("float32", 400, 100))
    layout = Layout("float32", 400, 100, devices=["cpu", "cpu"])
    there = encode_source(encoder, open_source(table), "text", tmp_path / "there", layout=layout)
    np.testing.assert_allclose(np.asarray(there), np.asarray(here), atol=1e-6)
    assert there.ids().tolist() == here.ids().tolist()
    with pytest.raises(MmclError, match="device 'cpux' is not known"):
        encode_source(encoder, open_source(table), "text", tmp_path / "x", layout=Layout(devices="cpux"))
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path):
    model = tiny.tiny_encoder(dim=256).save(tmp_path / "model")
    peaks = {}
    for count in (10_000, 200_000):
        pq.write_table(pa.table({"text": tiny.sentences(count)}), tmp_path / f"{count}.parquet")
        peaks[count] = int(in_a_process("peak", model, tmp_path / f"{count}.parquet", tmp_path / f"v{count}"))
    assert peaks[200_000] - peaks[10_000] < 100, peaks  # MB; the vectors are 205


def test_encoding_imports_no_faiss():
    probe = "import sys, mmcl.encoding, mmcl.encoding.corpora.encode; print('faiss' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_texts_that_were_cut_are_counted_and_said_once(tmp_path, caplog):
    encoder = tiny.tiny_encoder(max_tokens=16)
    texts = ["the red dog " * 20 if n % 10 == 0 else "a dog" for n in range(50)]
    with caplog.at_level(logging.WARNING, "mmcl"):
        stored = encode_source(encoder, rows(tmp_path / "s", text=texts), "text", tmp_path / "out", layout=SMALL)
    assert stored.truncated == 5
    assert [record.message for record in caplog.records if "--long chunk" in record.message] == [
        f"{tmp_path / 's.parquet'}: 5 texts in column 'text' were longer than the model reads, and cut; "
        "--long chunk embeds all of them"
    ]
