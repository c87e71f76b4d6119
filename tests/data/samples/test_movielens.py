"""MovieLens-100K as tables: what is train, what is test, and what a history holds."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from mmcl.data import samples
from mmcl.data.samples import movielens


def ratings(user, stars):
    return [
        {"user_id": user, "item_id": str(number), "rating": rating, "timestamp": number}
        for number, rating in enumerate(stars)
    ]


def test_the_last_fifth_of_what_a_user_liked_is_the_test():
    train, test = movielens.split(ratings("a", [5, 1, 4, 3, 4, 4, 4, 5, 5, 4, 4, 4, 5]) + ratings("b", [5] * 9))
    assert {row["user_id"] for row in train + test} == {"a"}  # b liked too few
    assert [row["item_id"] for row in train] == ["0", "2", "4", "5", "6", "7", "8", "9", "10"]
    assert [row["item_id"] for row in test] == ["11", "12"]


def test_films_as_the_file_has_them():
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    text = header + "1\tToy Story\t1995\tComedy War\n2\tunknown\t\t\n"
    assert movielens.items_of(text)["1"] == {
        "item_id": "1",
        "title": "Toy Story",
        "year": 1995,
        "genres": ["Comedy", "War"],
    }
    assert movielens.items_of(text)["2"]["year"] is None
    assert movielens.items_of(text)["2"]["genres"] == []


def test_the_sample_is_complete_and_no_history_holds_what_is_to_be_found():
    try:
        folder = samples.get("movielens")
    except samples.UnreachableError as error:
        pytest.skip(str(error))
    tables = {
        name: pq.read_table(folder / f"{name}.parquet") for name in ("ratings", "users", "items", "train", "test")
    }
    assert [table.num_rows for table in tables.values()] == [100_000, 943, 1682, 44_394, 10_655]
    test = tables["test"].select(["user_id", "item_id", "history"]).to_pylist()
    assert len({row["user_id"] for row in test}) == 897
    assert not any(row["item_id"] in row["history"] for row in test)
    before = {}
    for row in tables["train"].select(["user_id", "item_id", "history"]).slice(0, 2000).to_pylist():
        known = before.setdefault(row["user_id"], [])
        assert row["history"] == known
        known.append(row["item_id"])
