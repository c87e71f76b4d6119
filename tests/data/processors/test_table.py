"""Cells of tables to numbers of values, and standardised numbers."""

from __future__ import annotations

import numpy as np
import pytest

from mmcl.config.model import CategoryFieldConfig
from mmcl.data.processors.table import Categories, Numbers, TableProcessor, cells_from


def test_values_are_known_by_their_text_and_others_count_as_missing():
    field = Categories.fit(CategoryFieldConfig(), [["b", "a"], "a", None, [None, 3], 3.0])
    assert field.vocabulary == ["3", "a", "b"]
    read, unknown = field.read([["b", "new"], "3", 3, None, "", ["a", None]])
    assert [cell.tolist() for cell in read] == [[3], [1], [1], [], [], [2]]
    assert unknown == 1
    assert field.collate(read)["values"].tolist() == [[3], [1], [1], [0], [0], [2]]


def test_rare_values_are_not_known():
    field = Categories.fit(CategoryFieldConfig(min_count=2), [["a", "a"], "b", ["b", "c"]])
    assert field.vocabulary == ["b"]  # "a" is in one row, twice


def test_a_history_is_read_without_the_item_that_its_row_is_about():
    field = Categories.fit(CategoryFieldConfig(without="item"), [["a", "b", "c"]])
    read, _ = field.read([["a", "b", "c"]] * 3, ["b", ["a", "c"], None])
    assert [[field.vocabulary[number - 1] for number in cell] for cell in read] == [["a", "c"], ["b"], ["a", "b", "c"]]


def test_values_of_one_text():
    field = Categories.fit(CategoryFieldConfig(separator="|"), ["Drama|War", "War | Comedy", ""])
    assert field.vocabulary == ["Comedy", "Drama", "War"]


def test_hashed_values_have_a_bucket_each_whether_they_are_new_or_not():
    field = Categories.fit(CategoryFieldConfig(buckets=10), [])
    read, unknown = field.read([[str(number) for number in range(1000)]])
    assert field.entries == 11
    assert unknown == 0
    assert set(read[0].tolist()) == set(range(1, 11))


@pytest.mark.parametrize("cell", [[["a"]], {"a": 1}, [{"a": 1}], 0.5, b"a"])
def test_what_is_no_value_is_named(cell):
    with pytest.raises(ValueError, match=r"where (values|labels) are text or whole numbers"):
        Categories.fit(CategoryFieldConfig(), [cell])


def test_numbers_have_mean_0_and_deviation_1_and_say_where_there_is_none():
    given = np.array([1.0, 2.0, np.nan, 6.0])
    field = Numbers.fit(given)
    read, odd = field.read([1.0, 2.0, None, 6.0, "x", "", "4"])
    scores = np.stack(read)
    np.testing.assert_allclose(scores[[0, 1, 3], 0].mean(), 0, atol=1e-7)
    np.testing.assert_allclose(scores[[0, 1, 3], 0].std(), 1, atol=1e-6)
    assert scores[:, 1].tolist() == [1, 1, 0, 1, 0, 0, 1]
    assert scores[2, 0] == 0
    assert odd == 1


def test_a_constant_column_is_no_division_by_zero():
    assert np.stack(Numbers.fit(np.full(5, 7.0)).read([7.0])[0]).tolist() == [[0.0, 1.0]]


def test_fields_are_as_they_describe_themselves():
    fields = {"a": Categories(["x"], without="y", dropout=0.5), "b": Numbers(1.0, 2.0), "c": Categories(buckets=3)}
    assert {name: cells_from(of) for name, of in TableProcessor(fields).cells().items()} == fields
