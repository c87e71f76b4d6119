from __future__ import annotations

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmcl.data.sources import open_source
from mmcl.retrieval.metadata import Metadata, source_columns, with_columns
from mmcl.runtime.errors import MmclError


def ids(*values):
    return pa.table({"id": pa.array(values, pa.large_string() if isinstance(values[0], str) else pa.int64())})


def test_columns_are_kept_in_a_few_types():
    table = with_columns(
        ids("a", "b"),
        {
            "text": ["x", None],
            "word": pa.array(["x", "y"]).dictionary_encode(),
            "whole": np.array([1, 2], np.int8),
            "half": np.array([0.5, 1], np.float16),
            "exact": [decimal.Decimal("1.5"), None],
            "yes": [True, False],
            "day": [datetime.date(2024, 1, 2), None],
            "time": [datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC), None],
            "list": [["x"], None],
            "nothing": [None, None],
        },
    )
    assert [str(field.type) for field in table.schema][1:] == [
        "large_string",
        "large_string",
        "int64",
        "double",
        "double",
        "bool",
        "timestamp[us]",
        "timestamp[us, tz=UTC]",
        "large_list<item: large_string>",
        "large_string",
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": [1]}, "1 values of column 'x' for 2 vectors"),
        ({"x": [{"a": 1}, None]}, "column 'x' must hold text, numbers"),
        ({"x": [1, "two"]}, "column 'x' must hold"),
        ({"x": [2**63, 1]}, "column 'x' must hold"),
        ({"id": [1, 2]}, "cannot be called 'id'"),
    ],
)
def test_other_columns_are_refused(columns, message):
    with pytest.raises(MmclError, match=message):
        with_columns(ids("a", "b"), columns)


def test_ids_are_found_where_they_are_first():
    metadata = Metadata(ids("a", "b", "a", "c"))
    assert metadata.positions(["c", "a", "x", "a"]).tolist() == [3, 0, -1, 0]
    assert metadata.every(["a", "x"]).tolist() == [0, 2]
    assert metadata.positions(["x"]).tolist() == [-1]
    assert metadata.positions([]).tolist() == []
    removed = metadata.marked(np.array([0]))
    assert removed.count == 3
    assert removed.positions(["a"]).tolist() == [2]
    with pytest.raises(MmclError, match=r"no id 'x' \(2 such ids\); it has such as 'b'"):
        removed.known(["a", "x", "y"])


def test_what_was_not_found_has_an_empty_row():
    metadata = Metadata(with_columns(ids("a", "b"), {"n": [1, 2]}))
    assert metadata.at(np.array([1, -1])).to_pylist() == [{"id": "b", "n": 2}, {"id": None, "n": None}]


def test_ids_typed_on_a_command_line_are_numbers_where_the_index_has_numbers():
    metadata = Metadata(ids(1, 20))
    assert metadata.positions(["20", "1"]).tolist() == [1, 0]
    with pytest.raises(MmclError, match="the ids of the index are whole numbers, unlike 'a'"):
        metadata.positions(["a"])


def test_columns_of_a_source_stand_beside_the_vectors_of_their_ids(tmp_path, caplog):
    (tmp_path / "rows.csv").write_text(
        "id,price,colour,added\na,10,red,2024-01-01\nb,,blue,2024-02-01T12:00\nc,1.5,,\n"
    )
    rows = open_source(tmp_path / "rows.csv")
    table = source_columns(rows, ["price:number", "colour", "added:time"], pa.array(["c", "a", "c", "x"]))
    assert table["price"].to_pylist() == [1.5, 10, 1.5, None]
    assert table["colour"].to_pylist()[1] == "red"
    assert table["added"].to_pylist() == [None, datetime.datetime(2024, 1, 1), None, None]
    assert "1 of 4 vectors have no row there" in caplog.text
    for names, wanted, message in [
        (["size"], ["a"], "no column 'size'"),
        (["colour:number"], ["a"], "column 'colour' holds 'red', which is no number"),
        (["price:time"], ["a"], "column 'price' holds '10', no time"),
        (["price"], ["x"], "none of its ids"),
    ]:
        with pytest.raises(MmclError, match=message):
            source_columns(rows, names, pa.array(wanted))


def test_columns_of_parquet_keep_their_types(tmp_path):
    columns = {"key": [7, 8], "tags": [["x"], []], "at": [datetime.datetime(2024, 1, 1), None], "n": [1, 2]}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    rows = open_source(tmp_path / "rows.parquet")
    table = source_columns(rows, ["tags", "at", "n"], pa.array([8, 7]), "key")
    assert table.to_pydict() == {"tags": [[], ["x"]], "at": [None, datetime.datetime(2024, 1, 1)], "n": [2, 1]}
