"""CSV and TSV: no row is swallowed, and what spreadsheets, pandas and R write is read."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import pandas as pd
import pytest

from mmcl.data.sources import Rows, open_source
from mmcl.runtime.errors import MmclError


def opened(folder: Path, content: str | bytes, name: str = "t.csv", **options: str) -> Rows:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return open_source(folder / name, **options)


@pytest.mark.parametrize("first", ['"Stop', '"Hello," she said', '"', '""a" b'])
@pytest.mark.parametrize("last", ['"Go', 'say "bye"', 'five 5"', '"whole"', '"'])
@pytest.mark.parametrize("between", [0, 1, 7])
def test_of_tsv_a_quote_that_does_not_hold_is_text(
    tmp_path: Path, first: str, last: str, between: int, caplog: pytest.LogCaptureFixture
) -> None:
    cells = ["a", first, *["b"] * between, last, "c"]
    rows = opened(tmp_path, "text\tlabel\n" + "".join(f"{cell}\t{n}\n" for n, cell in enumerate(cells)), "t.tsv")
    assert rows.texts("text") == cells
    assert rows.column("label") == [str(n) for n in range(len(cells))]
    assert "line 3 of t.tsv opens a quote" in caplog.text
    assert "quotes are read as text" in caplog.text


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('text,label\na,1\n"Stop,2\nb,3\n"Go,4\n', 3),
        ('text,label\na,1\n"Stop,2\nb,3\nc,4\n', 3),
        ('text,label\na,1\nb,"2\nc,"3"\n', 3),
        ('text,label\n"two\nlines",1\na,"\n\nb,"c d",e\n', 4),
        ('text,label\n"say \\"hi\\"",1\n', 2),
        ('text,label\n"the "best" one",1\n', 2),
        ('text;label\na;1\n"b;2\nc;3\n"d;4\n', 3),
    ],
)
def test_of_csv_a_quote_that_does_not_hold_is_an_error_that_names_its_line(
    tmp_path: Path, content: str, line: int
) -> None:
    with pytest.raises(MmclError, match=rf"t\.csv: line {line}: the quote that opens there"):
        opened(tmp_path, content)


@pytest.mark.parametrize(
    "content",
    [
        'id,text\n1,"open\n2,b\n3,c"\n4,d\n',
        'id,text\n1,"open\n2,5"\n3,c\n',
        'id,text,z\n1,"open,x\n2,b,y\n3,5",z\n',
    ],
)
def test_fields_that_hold_rows_are_said(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    opened(tmp_path, content)
    assert "1 quoted fields of t.csv hold lines that look like rows, the first from line 2 on" in caplog.text


def test_quoted_lines_of_a_text_are_one_cell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = opened(tmp_path, 'id,text\n1,"first\nsecond ""line"" is done"\n2,"a, b"\n')
    assert rows.texts("text") == ['first\nsecond "line" is done', "a, b"]
    assert not caplog.text


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
@pytest.mark.parametrize("index", [True, False])
def test_what_pandas_writes_is_read(tmp_path: Path, name: str, index: bool) -> None:
    frame = pd.DataFrame({"text": ["a", 'b, "c"', "d\ne", "f\tg"], "label": [1, 2, 3, 4]})
    frame.to_csv(tmp_path / name, sep="," if name == "t.csv" else "\t", index=index)
    rows = open_source(tmp_path / name)
    assert rows.column_names == ([*["Unnamed: 0"] * index, "text", "label"])
    assert rows.texts("text") == frame["text"].tolist()
    assert rows.column("label") == ["1", "2", "3", "4"]
    if index:
        assert rows.column("Unnamed: 0") == ["0", "1", "2", "3"]


def test_the_same_as_pandas(tmp_path: Path) -> None:
    content = 'a,,b\n1,x,"y, z"\n\n2,"",\n"3, 4",NA,007\n'
    rows = opened(tmp_path, content)
    expected = pd.read_csv(tmp_path / "t.csv", dtype=str, keep_default_na=False)
    assert rows.column_names == list(expected.columns) == ["a", "Unnamed: 1", "b"]
    for column in expected.columns:
        assert rows.column(column) == expected[column].tolist()


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ('"","text","label"\n"1","a","x"\n"2","b","y"\n', ["Unnamed: 0", "text", "label"]),  # R's write.csv
        ("text,label,\na,x,\nb,y,\n", ["text", "label", "Unnamed: 2"]),
        ("text,label,\na,x\nb,y\n", ["text", "label", "Unnamed: 2"]),
        ("text,label\na,x,\nb,y,,\n", ["text", "label"]),
        ("text,label\na,x\nb,y,\n", ["text", "label"]),
        (",text,,label,\n0,a,,x,\n1,b,,y\n", ["Unnamed: 0", "text", "Unnamed: 2", "label", "Unnamed: 4"]),
    ],
)
def test_cells_without_a_name_and_commas_at_the_end_are_no_obstacle(
    tmp_path: Path, content: str, columns: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = opened(tmp_path, content)
    assert rows.column_names == columns
    assert (rows.texts("text"), rows.texts("label")) == (["a", "b"], ["x", "y"])
    assert not caplog.text


@pytest.mark.parametrize("times", [2, 3])
def test_an_index_that_pandas_wrote_again_and_again(tmp_path: Path, times: int) -> None:
    frame = pd.DataFrame({"text": ["a", "b"]})
    for _ in range(times):
        frame.to_csv(tmp_path / "t.csv")
        frame = pd.read_csv(tmp_path / "t.csv")
    rows = open_source(tmp_path / "t.csv")
    assert rows.column_names == list(frame.columns)
    assert rows.texts("text") == ["a", "b"]


def test_rs_write_table_names_no_column_for_the_names_of_rows(tmp_path: Path) -> None:
    rows = opened(tmp_path, '"text"\t"label"\n"1"\t"a"\t"x"\n"2"\t"b"\t"y"\n', "t.tsv")
    assert rows.column_names == ["Unnamed: 0", "text", "label"]
    assert (rows.texts("text"), rows.texts("label")) == (["a", "b"], ["x", "y"])


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_lines_in_quotes_of_a_single_column_are_said(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = opened(tmp_path, 'text\n"a\nb\nc"\nd\n', name)
    assert rows.texts("text") == (["a\nb\nc", "d"] if name == "t.csv" else ['"a', "b", 'c"', "d"])
    assert "line 2" in caplog.text


def test_rows_that_are_too_short_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = opened(tmp_path, "id,text\n1,a\n2\n3,c\n")
    assert rows.texts("text") == ["a", None, "c"]
    assert "1 of 3 rows of t.csv have fewer fields than the header, the first in line 3" in caplog.text


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_long_fields_are_read(tmp_path: Path, name: str) -> None:
    long = "x" * 200_000
    separator = "," if name == "t.csv" else "\t"
    rows = opened(tmp_path, f'{long}{separator}text\n{long}{separator}"{long}"\n', name)
    assert rows.column_names == [long, "text"]
    assert rows.texts("text") == [long]
    assert csv.field_size_limit() > 131_072


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("image| number| text\na.jpg| 0| A man , in a hat .\nb.jpg| 1| Two ; dogs\n", {}),
        ("image^number^text\na.jpg^0^A man , in a hat .\nb.jpg^1^Two ; dogs\n", {"separator": "^"}),
        ("image\tnumber\ttext\na.jpg\t0\tA man , in a hat .\nb.jpg\t1\tTwo ; dogs\n", {"separator": "\\t"}),
    ],
)
def test_other_separators(
    tmp_path: Path, content: str, options: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mmcl")
    rows = opened(tmp_path, content, **options)
    assert rows.column_names == ["image", "number", "text"]
    assert rows.texts("text") == ["A man , in a hat .", "Two ; dogs"]
    assert ("read as separated by vertical bars" in caplog.text) == (not options)
    rows = opened(
        tmp_path, content.replace("^", "|"), "t.txt", separator=options.get("separator", "|").replace("^", "|")
    )
    assert rows.texts("text") == ["A man , in a hat .", "Two ; dogs"]


@pytest.mark.parametrize("separator", ["", ";;", '"', "\n"])
def test_a_separator_is_one_character(tmp_path: Path, separator: str) -> None:
    with pytest.raises(MmclError, match=r"separator .* must be a single character"):
        opened(tmp_path, "a;b\n1;2\n", separator=separator)


def test_a_separator_is_of_csv_files(tmp_path: Path) -> None:
    with pytest.raises(MmclError, match=r"t\.jsonl: a separator is of CSV files"):
        opened(tmp_path, '{"a": 1}\n', "t.jsonl", separator=";")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.txt"])
def test_byte_order_marks_are_no_text(tmp_path: Path, encoding: str, name: str) -> None:
    rows = opened(tmp_path, "text\né\nb\n".encode(encoding), name)
    assert rows.texts("text")[-2:] == ["é", "b"]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_line_ends(tmp_path: Path, ending: str) -> None:
    rows = opened(tmp_path, ending.join(["id,text", "1,a", '2,"b"', ""]))
    assert rows.texts("text") == ["a", "b"]


def test_several_files_are_matched_by_their_headers(tmp_path: Path) -> None:
    opened(tmp_path, "id,text\n1,a\n", "train-0.csv")
    opened(tmp_path, "text;id\nb;2\n", "train-1.csv")
    rows = open_source(tmp_path)
    assert (rows.ids(), rows.texts("text")) == (["1", "2"], ["a", "b"])
    (tmp_path / "train-1.csv").write_text("text,ident\nb,2\n")
    with pytest.raises(MmclError, match=r"train-1\.csv: its header differs from that of train-0\.csv"):
        open_source(tmp_path)


@pytest.mark.parametrize("separator", [";", ",", "\t", "|"])
def test_the_line_by_which_excel_learns_the_separator_is_no_header(tmp_path: Path, separator: str) -> None:
    rows = opened(tmp_path, f"\ufeffsep={separator}\r\na{separator}b\r\n1{separator}2\r\n")
    assert [rows.column("a"), rows.column("b")] == [["1"], ["2"]]


@pytest.mark.parametrize(
    ("content", "cure"),
    [
        ('"text","n"\n"1","A",1\n', "if rows begin with their names, name that column too"),
        ('id, text\n1, "A, b"\n', "no blank may stand between a separator and the quote"),
        ("id,text\n1,A\n2,B, c\n", "has 3 fields, the header 2; quote fields that contain the separator$"),
    ],
)
def test_a_row_with_too_many_fields_comes_with_its_cure(tmp_path: Path, content: str, cure: str) -> None:
    with pytest.raises(MmclError, match=cure):
        opened(tmp_path, content)
