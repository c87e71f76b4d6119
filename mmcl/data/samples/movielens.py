"""MovieLens-100K: ratings of films, with what is known of the users and of the films (Harper and Konstan 2015)."""

from __future__ import annotations

import csv
import io
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmcl.data.samples.fetch import fetch_wheel
from mmcl.data.samples.sample import Sample

_WHEEL = ("recbole", "1.2.1", "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407")
_FILES = "recbole/dataset_example/ml-100k/ml-100k"

LIKED = 4
"""Stars of a film that somebody liked, at least."""
FEWEST = 10
"""Films that a user liked, at least, to be split."""
TEST = 0.2
"""Share of what a user liked, the last by time, that is the test."""

USER = pa.schema([(name, pa.string()) for name in ("user_id", "gender", "occupation", "zip")] + [("age", pa.int32())])
ITEM = pa.schema(
    [("item_id", pa.string()), ("title", pa.string()), ("year", pa.int32()), ("genres", pa.list_(pa.string()))]
)
RATING = pa.schema([("rating", pa.int32()), ("timestamp", pa.int64())])
HISTORY = pa.schema([("history", pa.list_(pa.string()))])


def read(text: str) -> list[list[str]]:
    """The rows of a file of tab-separated fields below its header."""
    return list(csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))[1:]


def users_of(text: str) -> dict[str, dict[str, Any]]:
    """Users by their ids."""
    rows = (dict(zip(("user_id", "age", "gender", "occupation", "zip"), row, strict=True)) for row in read(text))
    return {row["user_id"]: row | {"age": int(row["age"])} for row in rows}


def items_of(text: str) -> dict[str, dict[str, Any]]:
    """Films by their ids."""
    return {
        name: {
            "item_id": name,
            "title": title,
            "year": int(year) if year.isdecimal() else None,
            "genres": genres.split(),
        }
        for name, title, year, genres in read(text)
    }


def ratings_of(text: str) -> list[dict[str, Any]]:
    """Ratings, in the order in which they were made; of one second, in that of the file."""
    rows = [
        {"user_id": user, "item_id": item, "rating": int(float(rating)), "timestamp": int(float(time))}
        for user, item, rating, time in read(text)
    ]
    return sorted(rows, key=lambda row: row["timestamp"])


def split(ratings: Iterable[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What users liked, in the order of time: of each who liked enough the first part, and the last."""
    liked: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in ratings:
        if row["rating"] >= LIKED:
            liked[row["user_id"]].append(dict(row))
    train, test = [], []
    for rows in liked.values():
        if len(rows) >= FEWEST:
            kept = len(rows) - int(TEST * len(rows))
            train += rows[:kept]
            test += rows[kept:]
    return train, test


def build(folder: Path, show_progress: bool | None = None) -> dict[str, Any]:
    """Write ratings, users, items, train and test as Parquet into ``folder``."""
    with zipfile.ZipFile(fetch_wheel(*_WHEEL)) as archive:
        texts = {kind: archive.read(f"{_FILES}.{kind}").decode("utf-8") for kind in ("user", "item", "inter")}
    users, items, ratings = users_of(texts["user"]), items_of(texts["item"]), ratings_of(texts["inter"])
    train, test = split(ratings)
    history: dict[str, list[str]] = defaultdict(list)
    for row in train:
        row["history"] = list(history[row["user_id"]])
        history[row["user_id"]].append(row["item_id"])
    for user in users.values():
        user["history"] = history[user["user_id"]]
    tables = {
        "ratings": (ratings, [USER, ITEM, RATING]),
        "train": (train, [USER, HISTORY, ITEM, RATING]),
        "test": (test, [USER, HISTORY, ITEM, RATING]),
        "users": (list(users.values()), [USER, HISTORY]),
        "items": (list(items.values()), [ITEM]),
    }
    for name, (rows, schemas) in tables.items():
        full = [users.get(row.get("user_id", ""), {}) | items.get(row.get("item_id", ""), {}) | row for row in rows]
        table = pa.Table.from_pylist(full, schema=pa.unify_schemas(schemas))
        pq.write_table(table, folder / f"{name}.parquet")
    return {"packages": {_WHEEL[0]: _WHEEL[1]}, "rows": {name: len(rows) for name, (rows, _) in tables.items()}}


SAMPLE = Sample(
    name="movielens",
    version="1.2.1",
    summary="MovieLens-100K: 100,000 ratings (1-5) of 1,682 films by 943 users, with their columns (ratings, users, "
    f"items); of users with {FEWEST} films of {LIKED} stars or more, these in the order of time: train, and the last "
    "fifth as test; history: what they liked before, of those of train",
    terms="GroupLens, University of Minnesota: for research, with citation (Harper and Konstan 2015, "
    "doi:10.1145/2827872); no commercial use and no redistribution without permission "
    "(https://files.grouplens.org/datasets/movielens/ml-100k-README.txt).",
    download_mb=2.1,
    build=build,
)
