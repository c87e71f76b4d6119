from __future__ import annotations

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmcl.data.sources import open_source
from mmcl.retrieval.filters import matching
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


@pytest.mark.parametrize("given", ["ab", b"ab", 5, None])
def test_one_id_is_no_list_of_ids(given):
    metadata = Metadata(ids("a", "b"))
    for ask in (metadata.positions, metadata.every, lambda of: metadata.fitting(of, 2, None)):
        with pytest.raises(MmclError, match="give a list of them"):
            ask(given)


def test_what_pandas_writes_for_a_missing_number_is_empty():
    table = with_columns(ids("a", "b", "c"), {"x": np.array([0.5, np.nan, 2])})
    assert table["x"].to_pylist() == [0.5, None, 2.0]
    assert matching(table, "x != 0.5").tolist() == [False, False, True]


def test_whole_numbers_become_fractions_where_new_values_have_such():
    metadata = Metadata(with_columns(ids("a", "b"), {"x": [1, None]}))
    assert metadata.fitting(["c"], 1, {"x": [2.0]}).schema.field("x").type == pa.int64()
    grown = metadata.added(metadata.fitting(["c"], 1, {"x": [2.5]}))
    assert grown.table["x"].to_pylist() == [1.0, None, 2.5]
    assert grown.added(grown.fitting(["d"], 1, {"x": [3]})).table["x"].to_pylist() == [1.0, None, 2.5, 3.0]
    with pytest.raises(MmclError, match=r"'x' of the index holds numbers \(int64\), and .* numbers \(double\)"):
        Metadata(with_columns(ids("a"), {"x": [2**53 + 1]})).fitting(["c"], 1, {"x": [2.5]})
    with pytest.raises(MmclError, match="'x' of the index holds numbers, and the new values are text"):
        metadata.fitting(["c"], 1, {"x": ["2"]})


def test_times_with_and_without_a_zone_are_both_in_utc():
    without, within = datetime.datetime(2024, 1, 2), datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)
    for held, new in ((without, within), (within, without)):
        metadata = Metadata(with_columns(ids("a"), {"x": [held]}))
        assert metadata.added(metadata.fitting(["b"], 1, {"x": [new]})).table["x"].to_pylist() == [held, held]


def test_a_column_of_empty_cells_is_of_what_it_is_read_as(tmp_path):
    (tmp_path / "rows.csv").write_text("id,price,added,code\na,,,\nb,,,\n")
    rows = open_source(tmp_path / "rows.csv")
    table = source_columns(rows, ["price:number", "added:time", "code:text"], pa.array(["a", "b"]))
    assert [str(field.type) for field in table.schema] == ["int64", "timestamp[us]", "large_string"]


def test_ids_typed_on_a_command_line_are_numbers_where_the_index_has_numbers():
    metadata = Metadata(ids(1, 20))
    assert metadata.positions(["20", "1"]).tolist() == [1, 0]
    with pytest.raises(MmclError, match="the ids of the index are whole numbers, unlike 'a'"):
        metadata.positions(["1", "a"])


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


def test_a_search_copies_no_ids():
    metadata = Metadata(pa.table({"id": pa.chunked_array([["a", "b"], ["c"]], pa.large_string())}))
    column = metadata.table["id"]
    assert column.num_chunks == 1
    assert [one.address for one in metadata.ids.buffers()[1:]] == [one.address for one in column.chunk(0).buffers()[1:]]
    assert Metadata(metadata.table.slice(0, 0)).ids.to_pylist() == []
    assert Metadata(metadata.table.schema.empty_table()).positions(["a"]).tolist() == [-1]
