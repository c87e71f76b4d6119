"""Indexes by name, and indexes on disk that change while processes are killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import numpy as np
import pytest

from mmcl.encoding import VectorWriter, open_vectors
from mmcl.retrieval import Index, open_index
from mmcl.retrieval.index import INDEXES, changing, save_alone
from mmcl.runtime.errors import MmclError

VECTORS = np.random.default_rng(0).normal(size=(3_000, 64)).astype("float32")


def test_an_index_is_opened_by_the_engine_that_wrote_it(tmp_path, monkeypatch):
    Index.build(np.eye(3)).save(tmp_path / "index")
    path = tmp_path / "index" / "index.json"
    assert json.loads(path.read_text())["engine"] == "faiss"
    assert isinstance(open_index(tmp_path / "index"), Index)

    class Other:
        @classmethod
        def load(cls, folder):
            return f"other {folder.name}"

    monkeypatch.setitem(INDEXES._builtin, "other", "")
    monkeypatch.setitem(INDEXES._loaded, "other", Other)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"engine": "other"}))
    assert open_index(tmp_path / "index") == "other index"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"engine": "fais"}))
    with pytest.raises(MmclError, match="its engine is 'fais', which is not installed; did you mean 'faiss'"):
        open_index(tmp_path / "index")
    with pytest.raises(MmclError, match=r"no index\.json here"):
        open_index(tmp_path / "nothing")


@pytest.mark.parametrize("engine", ["faiss", "disk", "milvus"])
def test_hits_come_with_the_metadata_of_the_very_vectors_that_were_found(tmp_path, engine):
    if engine == "milvus":
        pytest.importorskip("milvus_lite")
    ids, places = ["a", "b", "a", "c", "b"], list(range(5))
    with VectorWriter(tmp_path / "v", dim=64, model="m") as writer:
        writer.append(ids, VECTORS[:5])
    place = {"uri": str(tmp_path / "milvus.db"), "spec": "FLAT"} if engine == "milvus" else {}
    index = INDEXES[engine].build(open_vectors(tmp_path / "v"), columns={"place": places}, **place)
    hits = index.hits(VECTORS[:5], 3)
    found = index.search(VECTORS[:5], 3)
    assert np.array_equal(hits.ids, found[0])
    assert np.array_equal(hits.scores, found[1])
    assert hits.rows["id"].to_pylist() == hits.ids.ravel().tolist()
    numbers = np.array(hits.rows["place"].to_pylist()).reshape(5, 3)
    assert numbers[:, 0].tolist() == places
    unit = VECTORS[:5] / np.linalg.norm(VECTORS[:5], axis=1, keepdims=True)
    np.testing.assert_allclose(np.take_along_axis(unit @ unit.T, numbers, 1), hits.scores, atol=1e-6)
    few = index.hits(VECTORS[:2], 9, where="place > 3")
    assert few.rows.to_pylist() == [{"id": "b", "place": 4}] * 2
    assert len(index.hits(VECTORS[:2], 9, where="place > 9").rows) == 0
    assert index.has(["c", "z", "a"]).tolist() == [True, False, True]


def test_an_index_of_format_1_is_read(tmp_path):
    """As it was written before there were columns, removals and held-out queries."""
    Index.build(VECTORS[:500], spec="IVF8,Flat").save(tmp_path)
    path = tmp_path / "index.json"
    about = json.loads(path.read_text())
    cells = about["effort"]
    for name in ("engine", "removed", "count_when_built", "effort", "target", "curve"):
        del about[name]
    del about["files"]["held_out.safetensors"]
    (tmp_path / "held_out.safetensors").unlink()
    path.write_text(json.dumps(about | {"format_version": 1, "nprobe": cells}))
    index = Index.load(tmp_path)
    assert index.info()["nprobe"] == cells
    index.add(VECTORS[500:600], np.arange(500, 600))
    assert index.info()["recall"] >= 0.95
    index.save(tmp_path)
    assert len(Index.load(tmp_path)) == 600


def child(folder, task) -> int:
    """The process in which ``task(index)`` changes the index in a folder."""
    process = os.fork()
    if process == 0:
        try:
            with changing(folder) as index:
                task(index)
        finally:
            os._exit(0)
    return process


@pytest.mark.parametrize("spec", ["Flat", "HNSW8"])
def test_a_killed_change_leaves_the_old_index_or_the_new_one(tmp_path, spec):
    folder = tmp_path / "index"
    Index.build(VECTORS[:2_000], spec=spec, similarity="euclidean").save(folder)
    first = 2_000

    def grow(index):
        index.add(VECTORS[2_000:], np.arange(first, first + 1_000))
        index.remove([first])

    start = time.perf_counter()
    os.waitpid(child(folder, grow), 0)
    seconds = time.perf_counter() - start
    assert len(Index.load(folder)) == 2_999
    seen = set()
    for moment in np.linspace(0.02, 1.1, 16):
        before = len(Index.load(folder))
        first = 100_000 + int(moment * 1e7)
        process = child(folder, grow)
        time.sleep(moment * seconds)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        index = Index.load(folder)  # its checksums are those of its files
        seen.add(len(index) - before)
        np.testing.assert_array_equal(index.vectors([7, 1_999]), VECTORS[[7, 1_999]])
        if len(index) > before:
            np.testing.assert_array_equal(index.vectors([first + 1]), VECTORS[[2_001]])
        if len(index) > 6_000:
            Index.build(VECTORS[:2_000], spec=spec, similarity="euclidean").save(folder)
    assert seen <= {0, 999}
    assert 0 in seen
    with changing(folder) as index:
        index.add(VECTORS[:1], [7_000_000])
    assert [path.name for path in tmp_path.iterdir()] == ["index"]  # what the killed ones left is gone


def test_one_process_at_a_time_changes_an_index(tmp_path):
    Index.build(VECTORS[:10]).save(tmp_path / "index")
    process = child(tmp_path / "index", lambda index: time.sleep(600))
    try:
        while not (tmp_path / ".index.changing" / ".lock").exists():
            time.sleep(0.05)
        with (
            pytest.raises(MmclError, match="index: another process is changing this index"),
            changing(tmp_path / "index"),
        ):
            pass
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    with changing(tmp_path / "index") as index:
        index.remove([3])
    assert len(Index.load(tmp_path / "index")) == 9


def test_an_index_that_is_built_anew_is_saved_after_a_change_that_had_begun(tmp_path):
    Index.build(VECTORS[:10]).save(tmp_path / "index")
    events = []

    def build():
        save_alone(Index.build(VECTORS[:3]), tmp_path / "index")
        events.append("built")

    with changing(tmp_path / "index") as index:
        building = threading.Thread(target=build)
        building.start()
        time.sleep(0.3)
        index.remove([3])
        events.append("changed")
    building.join()
    assert events == ["changed", "built"]
    assert len(open_index(tmp_path / "index")) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_words_and_learned_weights_stay_beside_a_changed_index_of_the_same_model(tmp_path):
    folder = tmp_path / "index"
    Index.build(VECTORS[:10], model="m").save(folder)
    (folder / "lexical").mkdir()
    (folder / "lexical" / "words").write_text("cat")
    (folder / "fusion.json").write_text("{}")
    with changing(folder) as index:
        index.remove([3])
    Index.build(VECTORS[:10], model="m").save(folder)
    assert (folder / "lexical" / "words").read_text() == "cat"
    assert (folder / "fusion.json").read_text() == "{}"
    Index.build(VECTORS[:10], model="other").save(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["ids.parquet", "index.faiss", "index.json"]
    for damaged in ("{", "[]", "{}"):
        (folder / "index.json").write_text(damaged)
        Index.build(VECTORS[:3], model="m").save(folder)
        assert len(open_index(folder)) == 3


def test_a_change_that_fails_is_not_saved(tmp_path):
    Index.build(VECTORS[:10]).save(tmp_path / "index")

    def fail():
        with changing(tmp_path / "index") as index:
            index.remove([3])
            index.remove([99])

    with pytest.raises(MmclError, match="holds no id 99"):
        fail()
    assert len(Index.load(tmp_path / "index")) == 10
    with pytest.raises(MmclError, match="no index"), changing(tmp_path / "nothing"):
        pass
    assert not (tmp_path / "nothing").exists()
