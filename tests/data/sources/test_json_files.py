"""JSON lines: values as they are written, whatever stands late in the file, and only columns asked for matter."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mmcl.data.sources import Rows, json_files, open_source
from mmcl.runtime.errors import MmclError


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the third row stands late."""
    monkeypatch.setattr(json_files, "_BLOCK_ROWS", 2)


def lines(folder: Path, *values: Any, key: str = "x", name: str = "t.jsonl") -> Rows:
    return objects(folder, *({"text": str(number), key: value} for number, value in enumerate(values)), name=name)


def objects(folder: Path, *rows: Any, name: str = "t.jsonl") -> Rows:
    content = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / name).write_text(content)
    return open_source(folder / name)


@pytest.mark.parametrize(
    "dates",
    [
        ["2020-01-01", "2021-12-31"],
        ["2020-01-01 00:00:00", "2020-01-01T10:00:00+02:00"],
        ["2020-01-01T00:00:00Z", "10:30:00"],
        ["0001-01-01", "nan"],
    ],
)
@pytest.mark.parametrize("name", ["t.jsonl", "t.json"])
def test_strings_that_look_like_dates_stay_as_written(tmp_path: Path, dates: list[str], name: str) -> None:
    rows = objects(tmp_path, *({"id": date, "text": [date], "more": {"at": date}} for date in dates), name=name)
    assert rows.ids() == dates
    assert rows.texts("text") == [[date] for date in dates]
    assert rows.column("more") == [{"at": date} for date in dates]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 1.5], [1.0, 2.0, 1.5]),
        ([None, None, ["a"]], [None, None, ["a"]]),
        ([1, 2, "x7"], ["1", "2", "x7"]),
        (["a", "b", ["c", "d"]], [["a"], ["b"], ["c", "d"]]),
        ([[], [], [1], [1.5]], [[], [], [1.0], [1.5]]),
        ([True, 1, "x"], ["True", "1", "x"]),
        ([2**60 + 1, 0.5, None], [str(2**60 + 1), "0.5", None]),
        ([1, 2, 2**70], ["1", "2", str(2**70)]),
        (
            [{"a": 1}, {"a": 2}, {"a": "z", "b": []}],
            [{"a": "1", "b": None}, {"a": "2", "b": None}, {"a": "z", "b": []}],
        ),
        ([{}, {}, {}], [{}, {}, {}]),
    ],
)
def test_a_type_that_comes_late_is_the_columns(tmp_path: Path, values: list[Any], expected: list[Any]) -> None:
    rows = lines(tmp_path, *values)
    assert rows.column("x") == expected
    assert rows.texts("text") == [str(number) for number in range(len(values))]


def test_keys_may_come_late_and_go(tmp_path: Path) -> None:
    rows = objects(tmp_path, {"text": "a"}, {"text": "b"}, {"neg": ["c"], "text": "d"}, {"neg": None})
    assert rows.column_names == ["text", "neg"]
    assert rows.column("neg") == [None, None, ["c"], None]
    assert rows.texts("text") == ["a", "b", "d", None]


def test_ten_megabytes_with_a_late_change_are_read(tmp_path: Path) -> None:
    scores = [1] * 11 + [1.5]
    file = tmp_path / "t.jsonl"
    filler = "x" * 10**6
    file.write_text("".join(f'{{"text": "{filler}", "score": {s:g}, "id": {n}}}\n' for n, s in enumerate(scores)))
    rows = open_source(file)
    assert file.stat().st_size > 10 * 2**20
    assert rows.numbers("score").tolist() == scores
    assert rows.select([11]).ids() == ["11"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([1, 2, {"a": 1}], r"line 3 of t\.jsonl: objects and other values in one column"),
        ([{"a": 1}, {"a": 2}, ["a"]], r"line 3 of t\.jsonl: objects and other values in one column"),
        (["a", "b", "\ud83d"], r"line 3 of t\.jsonl has half of a surrogate pair"),
        (["a", "b", json.loads("[" * 40 + "]" * 40)], r"line 3 of t\.jsonl: it is nested more than 16"),
    ],
)
def test_what_no_column_can_hold_names_line_and_column_where_it_is_asked_for(
    tmp_path: Path, values: list[Any], reason: str
) -> None:
    for key in ("x", "id"):
        rows = lines(tmp_path, *values, key=key, name=f"{key}-t.jsonl".removeprefix("x-"))
        assert rows.texts("text") == ["0", "1", "2"]
        assert rows.select([2, 0]).texts("text") == ["2", "0"]
    with pytest.raises(MmclError, match=r"column 'id' cannot be read: line 3"):
        rows.ids()
    rows = open_source(tmp_path / "t.jsonl")
    with pytest.raises(MmclError, match=f"column 'x' cannot be read: {reason}"):
        rows.column("x")
    with pytest.raises(MmclError, match=f"column 'x' cannot be read: {reason}"):
        rows.select([0]).require(["x"])


def test_countless_keys_are_no_columns(tmp_path: Path) -> None:
    with pytest.raises(MmclError, match=r"line 1 of t\.jsonl: more than 10,000 different keys"):
        objects(tmp_path, {f"k{n}": 1 for n in range(10_001)})


def test_objects_of_countless_keys_are_no_column(tmp_path: Path) -> None:
    rows = lines(tmp_path, *({f"k{row}-{key}": 1 for key in range(600)} for row in range(3)))
    assert rows.texts("text") == ["0", "1", "2"]
    with pytest.raises(MmclError, match=r"column 'x' cannot be read: .*more than 1,000 different keys"):
        rows.column("x")


@pytest.mark.parametrize("first", ["null", "3", '"text"', "[1, 2]", "true"])
@pytest.mark.parametrize("before", ["", "\n", '{"a": 1}\n'])
@pytest.mark.parametrize("name", ["t.jsonl", "t.json"])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, first: str, before: str, name: str) -> None:
    (tmp_path / name).write_text(f'{before}{first}\n{{"a": 1}}\n')
    with pytest.raises(MmclError, match=r"is not JSON|every row must be an object") as caught:
        open_source(tmp_path / name)
    if name == "t.jsonl":
        assert f"line {before.count(chr(10)) + 1} is {first}" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": "\xe9"}\n', r"line 2 is not UTF-8 text \(.*byte 0xe9\)"),
        (b'{"a": 1}\n' + b"[" * 100_000 + b"\n", r"line 2 is nested too deeply"),
        (b'{"a": 1}\n{"a": ' + b"9" * 5000 + b"}\n", r"line 2 is not JSON"),
        (b'{"a": {"b": 1}}\n{"a": 2}\n', r"column 'a': line 2"),
        (b'{"\\ud83d": 1}\n', "half of a surrogate pair"),
        (b"{}\n{}\n", "it has no columns"),
        (b"\n \n", "there are no rows"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.jsonl").write_bytes(content)
    with pytest.raises(MmclError, match=message):
        open_source(tmp_path / "t.jsonl")


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_file_may_hold_a_list(tmp_path: Path, indent: int | None) -> None:
    records = [{"text": "a", "n": 1}, {"text": "b", "n": 2.5}]
    (tmp_path / "t.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(records, indent=indent).encode())
    rows = open_source(tmp_path / "t.json")
    assert (rows.texts("text"), rows.column("n")) == (["a", "b"], [1.0, 2.5])


def test_columns_as_pandas_writes_them_are_rows(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a", "b"], "when": ["2020-01-01", "x"]}, index=[7, 3])
    frame.to_json(tmp_path / "t.json")
    rows = open_source(tmp_path / "t.json")
    assert (rows.texts("text"), rows.column("when")) == (["a", "b"], ["2020-01-01", "x"])


def test_compressed_lines_are_read_and_damage_of_theirs_named(tmp_path: Path) -> None:
    compressed = gzip.compress(b'{"id": "2020-01-01", "text": "a"}\n' * 50)
    (tmp_path / "train.jsonl.gz").write_bytes(compressed)
    assert open_source(tmp_path, split="train").ids() == ["2020-01-01"] * 50
    (tmp_path / "cut.jsonl.gz").write_bytes(compressed[:-10])
    (tmp_path / "not.jsonl.gz").write_bytes(b'{"text": "a"}\n')
    for name in ("cut", "not"):
        with pytest.raises(MmclError, match=rf"{name}\.jsonl\.gz: damaged gzip file"):
            open_source(tmp_path / f"{name}.jsonl.gz")


@pytest.mark.parametrize("content", ['{"text": ["A", "B"], "n": [1, 2]}', '{"text": {"x": "A", "y": "B"}}'])
def test_columns_of_one_length_are_rows(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.json").write_text(content)
    assert open_source(tmp_path / "t.json").texts("text") == ["A", "B"]


@pytest.mark.parametrize("content", ['{"text": ["A", "B"]}', '{"text": ["A", "B"], "n": [1]}', '{"text": "A"}'])
def test_an_object_that_is_no_columns_is_one_row(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.json").write_text(content)
    assert len(open_source(tmp_path / "t.json")) == 1
