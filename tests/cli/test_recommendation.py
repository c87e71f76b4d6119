"""From rows of what users chose to what they are recommended: train, judge, encode, index, search."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from mmcl.cli.app import app


def run(*arguments):
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert found.exit_code == 0, found.output
    return found.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Users like items of their own parity; the last two that each likes are the test."""
    folder = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(0)
    train, test, users = [], [], []
    for user in range(40):
        *before, one, two = (f"i{item}" for item in rng.choice(np.arange(user % 2, 30, 2), 9, replace=False))
        users.append({"user_id": f"u{user}", "history": before})
        row = users[-1]
        train += [row | {"item_id": item, "kind": int(item[1:]) % 2} for item in before]
        test += [row | {"item_id": item, "kind": int(item[1:]) % 2} for item in (one, two)]
    items = [{"item_id": f"i{item}", "kind": item % 2, "name": f"item {item}"} for item in range(30)]
    for name, rows in {"train": train, "test": test, "users": users, "items": items}.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    fields = {"history": {"kind": "category", "without": "item_id"}}
    config = {
        "name": "shop",
        "method": "two_tower",
        "data": {"train": {"source": str(folder / "train.parquet")}},
        "model": {
            "dim": 8,
            "towers": {
                "user": {"modality": "table", "fields": fields},
                "item": {"modality": "table", "fields": {"item_id": "category", "kind": "category"}},
            },
        },
        "training": {"batch_size": 64, "epochs": 10, "lr": 0.02, "warmup": 0, "precision": "float32"},
        "evaluation": {
            "sources": {"test": {"task": "recommendation", "source": str(folder / "test.parquet")}},
            "every": 5,
            "best": "test/user_to_item/ndcg@10",
            "ks": [5, 10],
        },
    }
    (folder / "shop.yaml").write_text(yaml.safe_dump(config))
    run("train", folder / "shop.yaml", "--out", folder / "run")
    return folder


def test_the_command_judges_as_training_did(folder):
    arguments = [
        "--seen",
        folder / "train.parquet",
        "-k",
        "5,10",
        "--dtype",
        "float32",
        "--json",
        folder / "scores.json",
    ]
    shown = run("eval", "recommendation", folder / "run", folder / "test.parquet", *arguments)
    found = json.loads((folder / "scores.json").read_text())["user_to_item"]
    assert found["metrics"]["recall@10"] > 0.8  # of 8 left of the user's own parity, and 15 of the other
    assert found["queries"] == 40
    assert "recall@10" in shown
    card = json.loads((folder / "run/model/mmcl.json").read_text())["card"]["scores"]
    assert card["test/user_to_item/ndcg@10"] == pytest.approx(found["metrics"]["ndcg@10"], abs=1e-6)


def test_a_users_id_finds_new_items_of_the_users_kind(folder):
    run("encode", folder / "run", folder / "items.parquet", "--tower", "item", "--id", "item_id", "--label", "name",
        "--out", folder / "vectors")  # fmt: skip
    run("index", "build", folder / "vectors", "--out", folder / "index")
    rows = ["--rows", folder / "users.parquet", "--id", "user_id", "--without", "history", "--tower", "user"]
    shown = run("search", folder / "index", "u3", "u4", "-k", "5", *rows, "--json", folder / "found.json")
    found = json.loads((folder / "found.json").read_text())
    users = {row["user_id"]: row["history"] for row in pq.read_table(folder / "users.parquet").to_pylist()}
    for user, hits in found.items():
        names = [hit["id"] for hit in hits]
        assert len(names) == 5
        assert not set(names) & set(users[user])
        assert {int(name[1:]) % 2 for name in names} == {int(user[1:]) % 2}
        assert hits[0]["label"] == f"item {names[0][1:]}"
    assert "u3" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "index", "u999", "--rows", "users.parquet", "--id", "user_id"], "no row has the id 'u999'"),
        (["eval", "recommendation", "run", "test.parquet", "--user", "who"], "no column 'who'"),
    ],
)
def test_mistakes_are_one_line(folder, monkeypatch, caplog, arguments, message):
    test_a_users_id_finds_new_items_of_the_users_kind(folder)
    monkeypatch.chdir(folder)
    from mmcl.runtime.errors import MmclError

    extra = ["--tower", "user"] if arguments[0] == "search" else []
    found = CliRunner().invoke(app, [*arguments, *extra])
    assert isinstance(found.exception, MmclError)
    assert message in str(found.exception)
