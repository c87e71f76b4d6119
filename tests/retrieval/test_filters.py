"""Conditions on metadata against the same conditions in Python, row by row."""

from __future__ import annotations

import datetime
import random

import pyarrow as pa
import pytest

from mmcl.retrieval.filters import Comparison, Joined, Not, columns_of, matching, parse
from mmcl.retrieval.metadata import with_columns
from mmcl.runtime.errors import MmclError

UTC = datetime.UTC
COLUMNS = {
    "category": ["shoes", "hats", None, "Shoes", "it's", "50% off"],
    "price": [10, 50, 20, None, 5, 70],
    "weight": [0.5, None, 2.5, float("nan"), 1.0, -3.0],
    "in_stock": [True, False, True, None, True, False],
    "tags": [["red", "new"], [], ["blue"], None, ["red"], ["a b"]],
    "sizes": [[1, 2], [3], [], None, [2, 40], [None, 7]],
    "added": [datetime.datetime(2024, month, 1, 12) for month in range(1, 7)],
    "seen": [datetime.datetime(2024, 1, day, tzinfo=UTC) for day in range(1, 7)],
    "unit price": [1, 2, 3, 4, 5, 6],
}
TABLE = with_columns(pa.table({"id": pa.array([f"r{row}" for row in range(6)], pa.large_string())}), COLUMNS)

EXPECTED = {
    "category = 'shoes'": [0],
    "category == 'shoes' or category = 'hats'": [0, 1],
    "category != 'shoes'": [1, 3, 4, 5],
    "category <> 'shoes'": [1, 3, 4, 5],
    "category = 'it''s'": [4],
    "category in ('shoes', 'hats')": [0, 1],
    "category not in ('shoes', 'hats')": [3, 4, 5],
    "category is null": [2],
    "category is not null": [0, 1, 3, 4, 5],
    "category like '%hoes'": [0, 3],
    "category like 's____'": [0],
    "category not like '%hoes'": [1, 4, 5],
    r"category like '50\% off'": [5],
    "category contains 'off'": [5],
    "category > 'i' and category < 'j'": [4],
    "price < 50": [0, 2, 4],
    "price < 20.5 and price>=10": [0, 2],
    "price <= 50 AND NOT price = 10": [1, 2, 4],
    "price between 10 and 20": [0, 2],
    "price not between 10 and 20": [1, 4, 5],
    "price in (10, 70.0, 1.5)": [0, 5],
    "price is null or weight is null": [1, 3],
    "weight > -4": [0, 2, 4, 5],
    "weight = -3": [5],
    "weight = 1e0": [4],
    "in_stock": [0, 2, 4],
    "not in_stock": [1, 5],
    "in_stock = false": [1, 5],
    "in_stock and price < 15": [0, 4],
    "tags contains 'red'": [0, 4],
    "tags not contains 'red'": [1, 2, 5],
    "tags is null": [3],
    "sizes contains 2": [0, 4],
    "sizes contains 7": [5],
    "sizes contains 2.0": [0, 4],
    "added < '2024-03-01'": [0, 1],
    "added = '2024-02-01T12:00'": [1],
    "added = '2024-02-01T14:00+02:00'": [1],
    "added in ('2024-02-01T12:00', '2024-06-01 12:00:00')": [1, 5],
    "seen >= '2024-01-05'": [4, 5],
    "seen > '2024-01-05T00:00:00Z'": [5],
    "seen < '2024-01-02T01:00+02:00'": [0],
    '"unit price" > 4': [4, 5],
    "id = 'r3'": [3],
    "(price < 15 or price > 60) and (category is not null)": [0, 4, 5],
    "price < 15 or price > 60 and in_stock": [0, 4],
    "not (price < 15 or price > 60)": [1, 2],
    "not not price < 15": [0, 4],
    "price = 99999999999999999999": [],
}


@pytest.mark.parametrize("where", EXPECTED)
def test_what_a_condition_is_true_of(where):
    assert matching(TABLE, where).nonzero()[0].tolist() == EXPECTED[where]
    assert matching(TABLE, f"  {where}\n").nonzero()[0].tolist() == EXPECTED[where]


WRONG = {
    "": "the condition is empty",
    "price <": "at its end: expected a value",
    "price < fifty": "at character 9, 'fifty': expected a value: 'text' in single quotes, a number",
    "price < 50 category = 'x'": "at character 12, 'category = 'x'': expected 'and', 'or' or the end",
    "price < 50 and": "at its end: expected the name of a column",
    "(price < 50": "at its end: expected ')'",
    "price < 50)": "at character 11, ')': expected 'and', 'or' or the end",
    "category = 'shoes": "at character 12, ''shoes': a text that does not end",
    "price ! 50": "at character 7, '! 50': a character that means nothing here",
    "price = null": "what is empty is found by 'is null'",
    "category in 'shoes'": "expected '(' and a list of values",
    "category in ('shoes'": "at its end: expected ',' or ')'",
    "category not = 'x'": "expected a comparison",
    "price 50": "expected a comparison",
    "50 < price": "at character 1, '50 < price': expected the name of a column",
    "prize < 50": "at character 1, 'prize < 50': there is no column 'prize'; did you mean 'price'?",
    "price < 50 and colour = 'x'": "at character 16, 'colour = 'x'': there is no column 'colour'; known: ",
    "price = 'ten'": "column 'price' holds numbers, and 'ten' is not a number",
    "price = true": "column 'price' holds numbers, and true is not a number",
    "category < 5": "column 'category' holds text, and 5 is not 'text' in single quotes",
    "category": "column 'category' holds text; compare it with something",
    "price like 'a%'": "column 'price' holds numbers; 'like' is for text",
    "price contains 1": "column 'price' holds numbers; 'contains' is for text and lists",
    "tags = 'red'": "column 'tags' holds lists of text; ask with: tags contains VALUE",
    "tags contains 3": "column 'tags' holds lists of text, and 3 is not 'text'",
    "in_stock = 1": "column 'in_stock' holds true or false, and 1 is not true or false",
    "in_stock < true": "column 'in_stock' holds true or false",
    "added > 'yesterday'": "column 'added' holds times, and 'yesterday' is not a time such as",
    "added > 2024": "column 'added' holds times, and 2024 is not a time",
    "added > '0001-01-01T00:00+05:00'": "column 'added' holds times, and '0001-01-01T00:00+05:00' is not a time",
    "price < 12abc": "at character 9, '12abc': a character that means nothing here",
    "(" * 500 + "price = 1" + ")" * 500: "no more than 100 conditions in each other",
    "not " * 500 + "price = 1": "no more than 100 conditions in each other",
}


@pytest.mark.parametrize("where", WRONG)
def test_a_mistake_is_answered_in_one_line_that_says_where(where):
    with pytest.raises(MmclError) as error:
        matching(TABLE, where)
    assert WRONG[where] in str(error.value)
    assert str(error.value).startswith("where: ")
    assert len(str(error.value)) < 500


def of_row(condition, row):
    """True, False or None: the three values of SQL."""
    if isinstance(condition, Not):
        value = of_row(condition.part, row)
        return None if value is None else not value
    if isinstance(condition, Joined):
        values = [of_row(part, row) for part in condition.parts]
        decisive = condition.by == "or"
        return decisive if decisive in values else None if None in values else not decisive
    cell = COLUMNS[condition.column][row]
    if condition.kind == "null":
        return cell is None
    if cell is None:
        return None
    value = condition.values[0]
    return {
        "=": cell == value,
        "!=": cell != value,
        "<": cell < value,
        ">=": cell >= value,
        "in": cell in condition.values,
    }[condition.kind]


def drawn(rng, depth):
    if depth == 0 or rng.random() < 0.3:
        column, value = rng.choice([("price", rng.choice([5, 20, 50])), ("category", rng.choice(["shoes", "hats"]))])
        kind = rng.choice(["=", "!=", "<", ">=", "in", "null"])
        return Comparison(column, kind, () if kind == "null" else (value,))
    if rng.random() < 0.3:
        return Not(drawn(rng, depth - 1))
    return Joined(rng.choice(["and", "or"]), tuple(drawn(rng, depth - 1) for _ in range(rng.randint(2, 3))))


def written(condition):
    if isinstance(condition, Not):
        return f"not ({written(condition.part)})"
    if isinstance(condition, Joined):
        return f" {condition.by} ".join(f"({written(part)})" for part in condition.parts)
    if condition.kind == "null":
        return f"{condition.column} is null"
    value = repr(condition.values[0])
    return f"{condition.column} {condition.kind} {f'({value})' if condition.kind == 'in' else value}"


@pytest.mark.parametrize("seed", range(100))
def test_any_condition_is_true_of_the_rows_that_it_is_true_of_in_sql(seed):
    condition = drawn(random.Random(seed), 4)
    expected = [row for row in range(6) if of_row(condition, row) is True]
    assert matching(TABLE, written(condition)).nonzero()[0].tolist() == expected


def test_a_condition_names_its_columns_and_binds_and_before_or():
    condition = parse("a = 1 or b = 2 and not c is null")
    assert list(columns_of(condition)) == ["a", "b", "c"]
    assert condition.by == "or"
    assert condition.parts[1].by == "and"
