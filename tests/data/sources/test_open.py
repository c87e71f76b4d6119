"""Sources: every format gives the rows that were written, and every mistake one line."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmcl.data.sources import Rows, open_source
from mmcl.data.sources.beir import is_beir, open_beir
from mmcl.data.sources.open import SOURCES
from mmcl.data.sources.tar.rows import open_rows
from mmcl.data.sources.tar.shards import is_shards
from mmcl.evaluation.tasks.sentence_pairs import open_sts
from mmcl.runtime.errors import MmclError

TABLE = {"id": ["a", "b", "c"], "text": ["one", "", 'three, "quoted"\nline'], "score": [0.5, 1.0, None]}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path_factory.getbasetemp() / "sources-cache"))


def write(path: Path, table: dict[str, list]) -> Path:
    records = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    if path.suffix == ".parquet":
        pq.write_table(pa.table(table), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        import csv

        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_every_format_gives_the_rows_written(tmp_path: Path, suffix: str) -> None:
    rows = open_source(write(tmp_path / f"pairs{suffix}", TABLE))
    assert len(rows) == 3
    assert rows.column_names == ["id", "text", "score"]
    assert rows.ids() == TABLE["id"]
    assert rows.texts("text") == TABLE["text"]
    typed = suffix not in (".csv", ".tsv")
    assert rows.column("score") == (TABLE["score"] if typed else ["0.5", "1.0", ""])


def test_csv_cells_are_text_as_written(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("\ufeffid,text\n007,NA\n08,null\n1e3,\nTrue,é\n".encode())
    rows = open_source(str(tmp_path / "t.csv"))
    assert rows.ids() == ["007", "08", "1e3", "True"]
    assert rows.texts("text") == ["NA", "null", "", "é"]


def test_texts_may_be_lists_numbers_none_or_class_labels(tmp_path: Path) -> None:
    rows = open_source(
        write(
            tmp_path / "t.parquet",
            {"n": [1, None], "captions": [["x", "y"], None], "nested": [[["x"], [None, "y"]], []], "b": [b"0", b"1"]},
        )
    )
    assert rows.texts("n") == ["1", None]
    assert rows.texts("captions") == [["x", "y"], None]
    assert rows.texts("nested") == [["x", "y"], []]
    assert rows.ids() == ["0", "1"]
    with pytest.raises(MmclError, match=r"column 'b' holds bytes, not text"):
        rows.texts("b")
    labelled = datasets.Dataset.from_dict({"label": [1, 0]}).cast_column(
        "label", datasets.ClassLabel(names=["no", "yes"])
    )
    assert Rows(labelled, name="t", fingerprint="f").texts("label") == ["yes", "no"]


def test_selections_compose_and_keep_ids(tmp_path: Path) -> None:
    rows = open_source(write(tmp_path / "t.jsonl", {"text": [str(i * i) for i in range(2500)]}))
    order = np.random.default_rng(0).permutation(2500)
    chosen = rows.select(order).select(range(10, 1500))
    assert chosen.ids() == [str(i) for i in order[10:1500]]
    assert chosen.texts("text") == [str(i * i) for i in order[10:1500]]
    assert rows.select(range(5, 8)).column("text") == ["25", "36", "49"]
    assert len(rows.select([])) == 0
    assert rows.select([]).texts("text") == []
    with pytest.raises(IndexError):
        rows.select([2500])


def test_fingerprint_follows_content_and_selection(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", TABLE)
    rows = open_source(path)
    assert open_source(path).fingerprint == rows.fingerprint == rows.select([0, 1, 2]).fingerprint
    assert rows.select([2, 1]).fingerprint == rows.select([2, 1, 0]).select([0, 1]).fingerprint
    assert rows.select([2, 1]).fingerprint not in (rows.fingerprint, rows.select([1, 2]).fingerprint)
    path.write_text(path.read_text().replace("one", "two"))
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 10**9))
    again = open_source(path)
    assert again.fingerprint != rows.fingerprint
    assert again.texts("text")[0] == "two"


def test_images_are_bytes_or_paths_from_the_files_folder(tmp_path: Path) -> None:
    table = {"path": ["x/a.png", str(tmp_path / "b.png"), None], "bytes": [b"\x89", b"", None]}
    table["struct"] = [{"bytes": b"z", "path": "q.png"}, {"bytes": None, "path": "q.png"}, None]  # type: ignore[list-item]
    rows = open_source(write(tmp_path / "t.parquet", table))
    assert rows.images("path", [2, 0, 1]) == [None, tmp_path / "x/a.png", tmp_path / "b.png"]
    assert rows.images("bytes", [0, 1, 2]) == [b"\x89", b"", None]
    assert rows.select([1, 0]).images("struct", [0, 1]) == [tmp_path / "q.png", b"z"]


def test_image_features_of_datasets_stay_encoded(tmp_path: Path) -> None:
    drawn = Image.new("RGB", (4, 4), (1, 2, 3))
    drawn.save(tmp_path / "a.png")
    saved = datasets.Dataset.from_dict({"image": [drawn, str(tmp_path / "a.png")]})
    saved.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    images = open_source(tmp_path / "saved").images("image", [0, 1])
    assert all(isinstance(image, bytes) or image == tmp_path / "a.png" for image in images)
    assert open_source(tmp_path / "saved").column("image")[0].keys() == {"bytes", "path"}


def test_lists_are_not_images(tmp_path: Path) -> None:
    rows = open_source(write(tmp_path / "t.parquet", {"image": [["a.png"]]}))
    with pytest.raises(MmclError, match="column 'image' holds list, not images"):
        rows.images("image", [0])


def test_folder_of_tables_has_splits(tmp_path: Path) -> None:
    for name, text in [("train-00000-of-00002", "a"), ("train-00001-of-00002", "b"), ("dev", "c"), ("dev_unseen", "d")]:
        write(tmp_path / f"{name}.parquet", {"text": [text]})
    assert open_source(tmp_path, split="train").texts("text") == ["a", "b"]
    assert open_source(tmp_path, split="dev").texts("text") == ["c"]
    with pytest.raises(MmclError, match=r"no split 'test'; it has dev, dev_unseen, train$"):
        open_source(tmp_path, split="test")
    with pytest.raises(MmclError, match="it has the splits dev, dev_unseen, train; name one as split"):
        open_source(tmp_path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_column_split_parts_a_single_table(tmp_path: Path, suffix: str) -> None:
    parts = ["train", "dev", "train", None if suffix != ".csv" else ""]
    path = write(tmp_path / f"t{suffix}", {"split": parts, "text": ["a", "b", "c", "d"]})
    both, train, dev = (open_source(path, split=split) for split in (None, "train", "dev"))
    assert [rows.texts("text") for rows in (both, train, dev)] == [["a", "b", "c", "d"], ["a", "c"], ["b"]]
    assert train.ids() == ["0", "2"]
    assert (train.name, dev.name) == (f"{path} (train)", f"{path} (dev)")
    assert len({rows.fingerprint for rows in (both, train, dev)}) == 3
    with pytest.raises(MmclError, match=r"no split 'test'; it has dev, train$"):
        open_source(path, split="test")


def test_saved_dataset_dict_has_splits(tmp_path: Path) -> None:
    parts = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    rows = open_source(tmp_path / "saved", split="test")
    assert rows.texts("text") == ["test"]
    assert rows.fingerprint != open_source(tmp_path / "saved", split="train").fingerprint
    with pytest.raises(MmclError, match="no split 'dev'; it has test, train"):
        open_source(tmp_path / "saved", split="dev")


@pytest.mark.parametrize("metadata", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_image_folder_with_metadata(tmp_path: Path, metadata: str) -> None:
    write(tmp_path / metadata, {"file_name": ["x/a.png", "b.png"], "text": ["first", "second"]})
    rows = open_source(tmp_path)
    assert rows.column_names == ["image", "text"]
    assert rows.images("image", [1, 0]) == [tmp_path / "b.png", tmp_path / "x/a.png"]


def test_metadata_without_file_names_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "metadata.csv", {"path": ["a.png"]})
    with pytest.raises(MmclError, match=r"metadata\.csv: no column 'file_name' .* it has path"):
        open_source(tmp_path)


def test_image_folder_with_captions_beside(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for name in ("b.png", "x/a.jpg"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    (tmp_path / "b.txt").write_text("a caption\n")
    rows = open_source(tmp_path)
    assert rows.ids() == ["b.png", "x/a.jpg"]
    assert rows.texts("text") == ["a caption", None]
    assert rows.images("image", [1]) == [tmp_path / "x/a.jpg"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "the file is empty"),
        ("a.csv", "id,text\n", "there are no rows below the header"),
        ("a.csv", "id,id\n1,2\n", "the header names 'id' twice"),
        ("a.csv", "id,text\n1,hello, world\n", "line 2 has 3 fields, the header 2"),
        ("a.csv", "id,text\n1,x\n2,hello, world\n", "line 3 has 3 fields, the header 2"),
        ("a.csv", 'id,text\n1,x\n2,"open\n', "line 3: the quote that opens there is never closed"),
        ("a.csv", b"id,text\n1,\xff\n", r"line 2 is not UTF-8 text .*0xff.*; save it as UTF-8"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', r"a\.jsonl: line 2 is not JSON"),
        ("a.jsonl", "\n", "there are no rows|cannot be read"),
        ("a.json", '[{"a": 1}, {', "is not JSON"),
        ("a.parquet", "garbage", "cannot be read: Parquet"),
        ("a.xlsx", "garbage", r"no reader for '\.xlsx' files; known: \.csv"),
    ],
)
def test_bad_files_give_one_clear_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(MmclError, match=message) as caught:
        open_source(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(MmclError, match=r"pairs\.csv: no such file or folder"):
        open_source(tmp_path / "pairs.csv")
    with pytest.raises(MmclError, match=rf"no such file or folder, relative to the working directory {Path.cwd()} "):
        open_source("data/pairs.csv")
    with pytest.raises(MmclError, match=r"neither tables .* nor images"):
        open_source(tmp_path)
    rows = open_source(write(tmp_path / "t.csv", TABLE))
    with pytest.raises(MmclError, match=r"t\.csv: no column 'txt'; it has id, text, score; did you mean 'text'\?"):
        rows.require(["id", "txt"])
    with pytest.raises(MmclError, match="no column 'nope'"):
        rows.texts("nope")
    with pytest.raises(
        MmclError, match=r"t\.csv: there is no column 'split' to choose 'train' by; leave the split out"
    ):
        open_source(tmp_path / "t.csv", split="train")


@pytest.mark.parametrize(
    ("error", "message"), [(ConnectionError, "the hub cannot be reached"), (FileNotFoundError, "no such data set on")]
)
def test_hub_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, error: type[Exception], message: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("details")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(MmclError, match=message):
        open_source("user/name:config")


@pytest.mark.parametrize("source", ["table", "hub"])
def test_full_disk_is_an_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    def fail(*_: object, **__: object) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            if source == "table":
                raise
            raise datasets.exceptions.DatasetGenerationError("An error occurred") from error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(pa, "OSFile", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        open_source(write(tmp_path / "t.csv", TABLE) if source == "table" else "user/name")
    assert caught.value.errno == errno.ENOSPC


def test_the_settings_of_datasets_are_left_as_they_were(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    before = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    open_source(tmp_path / "saved")
    assert (datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()) == before


def test_a_csv_file_separated_by_tabs_or_semicolons_is_read_as_such(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mmcl")
    (tmp_path / "t.csv").write_text("filepath\ttitle\na.jpg\ta dog, a cat\nb.jpg\ta; b\n")
    rows = open_source(tmp_path / "t.csv")
    assert rows.column_names == ["filepath", "title"]
    assert rows.texts("title") == ["a dog, a cat", "a; b"]
    assert "read as separated by tabs" in caplog.text
    (tmp_path / "s.csv").write_text("filepath;title\na.jpg;two\twords\n")
    assert open_source(tmp_path / "s.csv").texts("title") == ["two\twords"]
    (tmp_path / "one.csv").write_text("text\na\tb\n")
    assert open_source(tmp_path / "one.csv").texts("text") == ["a\tb"]


def karpathy(folder: Path, **more: object) -> Path:
    sentences = [[{"raw": f"{n} first", "tokens": []}, {"raw": f"{n} second"}] for n in range(4)]
    splits = ["train", "restval", "test", "train"]
    images = [
        {"filename": f"{n}.jpg", "split": split, "sentences": said, **more}
        for n, (split, said) in enumerate(zip(splits, sentences, strict=True))
    ]
    (folder / "dataset.json").write_text(json.dumps({"dataset": "small", "images": images}))
    return folder / "dataset.json"


@pytest.mark.parametrize(("folder", "filepath"), [("", ""), ("images", ""), ("val2014", "val2014"), ("", "nowhere")])
def test_karpathys_json_gives_images_with_all_their_captions(tmp_path: Path, folder: str, filepath: str) -> None:
    file = karpathy(tmp_path, **({"filepath": filepath} if filepath else {}))
    (tmp_path / folder).mkdir(exist_ok=True)
    for n in range(4):
        Image.new("RGB", (4, 4), (n, 0, 0)).save(tmp_path / folder / f"{n}.jpg")
    test = open_source(file, split="test")
    assert test.ids() == ["2.jpg"]
    assert test.texts("text") == [["2 first", "2 second"]]
    assert test.images("image", [0]) == [tmp_path / folder / "2.jpg"]
    assert open_source(file, split="train+restval").ids() == ["0.jpg", "1.jpg", "3.jpg"]
    with pytest.raises(MmclError, match=r"splits train \(2\), restval \(1\), test \(1\); name one"):
        open_source(file)
    with pytest.raises(MmclError, match=r"no split 'dev'; it has train"):
        open_source(file, split="dev")


def test_karpathys_json_without_its_images_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(MmclError, match=r"not there; looked for .*/0\.jpg, .*/images/0\.jpg"):
        open_source(karpathy(tmp_path), split="train")
    (tmp_path / "rows.json").write_text('{"images": [{"a": 1}], "text": "x"}\n{"images": [{"a": 2}], "text": "y"}\n')
    assert open_source(tmp_path / "rows.json").texts("text") == ["x", "y"]


def test_beirs_ids_are_ids(tmp_path: Path) -> None:
    rows = open_source(write(tmp_path / "corpus.jsonl", {"_id": ["d7", "d9"], "text": ["one", "two"]}))
    assert rows.ids() == ["d7", "d9"]
    assert rows.select([1]).ids() == ["d9"]


def test_a_file_that_begins_with_a_tilde_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("~one.csv").write_text("text\nOne\n")
    assert open_rows("~one.csv").texts("text") == ["One"]
    assert open_sts("~one.csv", columns=dict.fromkeys(("sentence1", "sentence2"), "text"), scored=False).first == [
        "One"
    ]
    assert not is_beir("~nobody-of-this-name/x")


def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path / "rows.csv", TABLE).parent)
    for use in (open_rows, open_beir):
        with pytest.raises(MmclError, match="an empty name"):
            use("")


def test_a_split_is_a_folder_inside(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "train.csv", TABLE)
    for split in ("../b", ".", ".."):
        with pytest.raises(MmclError, match=f"no split '{split}'"):
            open_source(tmp_path / "a", split=split)


def test_paths_are_found_however_each_of_their_names_is_composed(tmp_path):
    (tmp_path / "cafe\u0301").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "cafe\u0301" / "caf\xe9.png")
    paths = ["caf\xe9/cafe\u0301.png", "cafe\u0301\\cafe\u0301.png", "file://caf%C3%A9/caf%C3%A9.png"]
    (tmp_path / "rows.csv").write_text("\n".join(["image", *paths]), encoding="utf-8")
    rows = open_source(tmp_path / "rows.csv")
    assert rows.images("image", range(3)) == [tmp_path / "cafe\u0301" / "caf\xe9.png"] * 3


def test_a_source_of_another_package_is_opened_by_its_key(tmp_path, monkeypatch):
    info = tmp_path / "counted-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: counted\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mmcl.sources]\ncount = counted_:numbers\n")
    (tmp_path / "counted_.py").write_text(
        "import datasets\n"
        "from mmcl.data.rows import Rows\n\n"
        "def numbers(name, split):\n"
        "    dataset = datasets.Dataset.from_dict({'text': [f'{split} {n}' for n in range(int(name))]})\n"
        "    return Rows(dataset, name=f'count:{name}', fingerprint=name)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    SOURCES.__dict__.pop("plugins", None)
    try:
        rows = open_source("count:3", split="dev")
        assert (rows.name, list(rows.texts("text"))) == ("count:3", ["dev 0", "dev 1", "dev 2"])
        assert not is_shards("count:3.tar")  # the key decides, not what the name ends in
        with pytest.raises(MmclError, match="no such file or folder"):
            open_source("cuont:3")
    finally:
        SOURCES.__dict__.pop("plugins", None)
        SOURCES._loaded.pop("count", None)
        sys.modules.pop("counted_", None)
