"""Tables in the cache: a path that exists is that path, and what fails is called by its name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmcl.data.sources import open_source
from mmcl.data.sources.tar.shards import is_shards
from mmcl.runtime.errors import MmclError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": [text]}), path)
    elif path.suffix in (".jsonl", ".json"):
        path.write_text(json.dumps({"text": text}) + "\n")
    elif path.suffix == ".txt":
        path.write_text(f"{text}\n")
    else:
        path.write_text(f"text\n{text}\n")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt"])
@pytest.mark.parametrize("odd", ["pairs[1]", "pairs*", "pairs?", "{pairs1,pairs2}", "p::q", "x%41", "**", "a#b", "~p"])
def test_a_path_that_exists_is_that_path(tmp_path: Path, suffix: str, odd: str) -> None:
    for name in ("pairs1", "pairs2", "q"):
        write(tmp_path / f"{name}{suffix}", "another")
        write(tmp_path / name / f"t{suffix}", "another")
    assert open_source(write(tmp_path / f"{odd}{suffix}", "right")).texts("text") == ["right"]
    assert open_source(write(tmp_path / odd / f"t{suffix}", "right")).texts("text") == ["right"]
    assert open_source(tmp_path / odd).texts("text") == ["right"]


@pytest.mark.parametrize("name", ["t.csv", "a b#1.csv"])
def test_a_file_url_is_a_path(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "right")
    assert not is_shards(path.as_uri())
    assert open_source(path.as_uri()).texts("text") == ["right"]


def test_folders_of_datasets_and_of_images_are_what_they_are_called(tmp_path: Path) -> None:
    for name in ("s[1]", "s1"):
        datasets.Dataset.from_dict({"text": [name]}).save_to_disk(tmp_path / name)
        (tmp_path / f"images-{name}").mkdir()
        Image.new("RGB", (2, 2)).save(tmp_path / f"images-{name}" / f"{name}.png")
    assert open_source(tmp_path / "s[1]").texts("text") == ["s[1]"]
    assert open_source(tmp_path / "images-s[1]").ids() == ["s[1].png"]
    assert open_source(tmp_path, split="images-s[1]").ids() == ["s[1].png"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(MmclError, match=r"file.*; set MMCL_CACHE"):
        open_source(write(tmp_path / "t.csv", "a"))


def test_a_table_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "t.csv", "a")
    plain = Path.open

    def refuse(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name == "t.csv":
            raise PermissionError(13, "Permission denied", str(self))
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(MmclError, match=r"t\.csv: cannot be read: Permission denied"):
        open_source(path)


def test_a_damaged_cache_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "t.csv", "a")
    assert open_source(path).texts("text") == ["a"]
    stored = next((tmp_path / "cache").glob("tables/*/rows.arrow"))
    os.truncate(stored, 10)
    assert open_source(path).texts("text") == ["a"]


def test_parquet_of_bytes_that_are_no_text(tmp_path: Path) -> None:
    bad = pa.array([b"good", b"\xff\xfe", b"x"]).view(pa.string())
    pq.write_table(pa.table({"text": bad, "fine": ["a", "b", "c"]}), tmp_path / "t.parquet")
    rows = open_source(tmp_path / "t.parquet")
    assert rows.texts("fine") == ["a", "b", "c"]
    with pytest.raises(MmclError, match=r"t\.parquet: column 'text' holds what is no UTF-8 text"):
        rows.texts("text")
    with pytest.raises(MmclError, match="column 'text' holds what is no UTF-8 text"):
        rows.select([2, 1]).column("text")


def test_parquet_keeps_types_and_reads_categories(tmp_path: Path) -> None:
    table = pa.table(
        {
            "label": pa.array(["cat", "dog", "cat"]).dictionary_encode(),
            "at": pa.array([0, 1, 2], pa.timestamp("s")),
            "list": [[1], [], None],
            "map": pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int64())),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    rows = open_source(tmp_path / "t.parquet")
    assert rows.texts("label") == ["cat", "dog", "cat"]
    assert rows.column("list") == [[1], [], None]
    assert len(rows.texts("at")) == 3


def test_parquet_files_whose_types_differ_are_widened_or_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1], "x": ["a"], "e": pa.nulls(1)}), tmp_path / "train-0.parquet")
    pq.write_table(pa.table({"x": [[1]], "n": [1.5], "e": ["z"]}), tmp_path / "train-1.parquet")
    rows = open_source(tmp_path)
    assert rows.column("n") == [1.0, 1.5]
    assert rows.column("e") == [None, "z"]
    with pytest.raises(MmclError, match="column 'x' cannot be read"):
        rows.column("x")
    pq.write_table(pa.table({"m": [1]}), tmp_path / "train-1.parquet")
    with pytest.raises(MmclError, match=r"train-1\.parquet: its columns differ from those of train-0\.parquet"):
        open_source(tmp_path)


def test_damaged_parquet_is_one_line(tmp_path: Path) -> None:
    content = (write(tmp_path / "t.parquet", "a" * 100)).read_bytes()
    for cut in (8, 60, len(content) // 2, len(content) - 9):
        (tmp_path / "t.parquet").write_bytes(content[:cut])
        with pytest.raises(MmclError, match=r"t\.parquet: cannot be read"):
            open_source(tmp_path / "t.parquet")


def test_text_files_of_a_sentence_a_line(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes('one, "two\n\nthree\u2028four\x0bfive\r\nsix'.encode())
    (tmp_path / "README.txt").write_text("about it")
    assert open_source(tmp_path / "train.txt").texts("text") == ['one, "two', "", "three\u2028four\x0bfive", "six"]
    assert len(open_source(tmp_path)) == 4
    write(tmp_path / "dev.txt", "a")
    assert open_source(tmp_path, split="dev").texts("text") == ["a"]
    with pytest.raises(MmclError, match="it has the splits dev, train; name one"):
        open_source(tmp_path)
    with pytest.raises(MmclError, match="no split 'test'; it has dev, train"):
        open_source(tmp_path, split="test")


def test_a_name_too_long_or_of_no_characters_of_a_path_is_one_line(tmp_path: Path) -> None:
    for source in ("x" * 5000, "a\0b.csv"):
        with pytest.raises(MmclError):
            open_source(source)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone tells what is resident")
def test_what_was_read_of_a_table_can_leave_memory(tmp_path: Path) -> None:
    texts = [f"{number:0>1000}" for number in range(20_000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "t.parquet")
    rows = open_source(tmp_path / "t.parquet")
    assert rows.texts("text") == texts
    before = of_files_mb()
    rows.select(range(10)).release()
    assert of_files_mb() < before - 15  # of 20 MB
    assert rows.texts("text") == texts


def of_files_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssFile"))
