"""Two towers over groups of columns: trained, resumed, saved, and asked for by rows."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import mmcl
from mmcl.runtime.errors import MmclError

USERS, ITEMS = 40, 30


def rows():
    """Users of an even number like items of an even number, and the others the others."""
    rng = np.random.default_rng(0)
    liked = {
        user: [int(item) for item in rng.choice(np.arange(user % 2, ITEMS, 2), 8, replace=False)]
        for user in range(USERS)
    }
    return [
        {
            "user_id": user,
            "age": float(20 + user),
            "history": [str(item) for item in items],
            "item_id": str(item),
            "kinds": ["even" if item % 2 == 0 else "odd", f"k{item % 5}"],
            "title": f"number {item} of them",
        }
        for user, items in liked.items()
        for item in items
    ]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows()), path)
    return path


def config(source, **changed):
    user = {"history": {"kind": "category", "width": 8, "without": "item_id", "dropout": 0.3}, "age": "number"}
    item = {"item_id": {"kind": "category", "width": 8}, "kinds": {"kind": "category", "width": 4}}
    return {
        "method": {"name": "two_tower", **changed.pop("method", {})},
        "data": {"train": {"source": str(source)}},
        "model": {
            "dim": 8,
            "towers": {
                "user": {"modality": "table", "fields": user | changed.pop("user", {})},
                "item": {"modality": "table", "fields": item | changed.pop("item", {})},
            },
        },
        "training": {"batch_size": 64, "epochs": 3, "lr": 0.02, "save_every": 5, "warmup": 0, "precision": "float32"}
        | changed.pop("training", {}),
        **changed,
    }


def test_items_of_a_users_own_kind_come_first(source, tmp_path):
    run = mmcl.train(config(source, training={"epochs": 15}), out=tmp_path / "run")
    encoder = mmcl.load(run.folder)
    items = [
        {"item_id": str(item), "kinds": ["even" if item % 2 == 0 else "odd", f"k{item % 5}"]} for item in range(ITEMS)
    ]
    users = {row["user_id"]: row for row in rows()}
    scores = encoder.encode(list(users.values()), "user") @ encoder.encode(items, "item").T
    best = np.argsort(-scores, axis=1)[:, :8]
    assert ((best % 2) == (np.array(list(users))[:, None] % 2)).mean() > 0.95


def test_what_is_saved_embeds_as_what_was_trained(source, tmp_path):
    run = mmcl.train(config(source), out=tmp_path / "run")
    encoder = mmcl.load(run.folder, dtype="float32")
    encoder.save(tmp_path / "copy")
    some = [{"history": ["1", "3"], "age": 25}, {"history": None, "age": None}, {"history": ["unheard of"], "age": 60}]
    np.testing.assert_array_equal(
        mmcl.load(tmp_path / "copy", dtype="float32").encode(some, "user"), encoder.encode(some, "user")
    )
    assert json.loads((tmp_path / "copy/user/fields.json").read_text())["age"]["mean"] == pytest.approx(39.5)
    one = encoder.encode(some[0], "user")
    assert one.shape == (8,)
    np.testing.assert_allclose(one, encoder.encode(some, "user")[0], atol=1e-6)
    np.testing.assert_allclose(
        torch.nn.functional.normalize(encoder.embed(some, "user"), dim=1).detach(),
        encoder.encode(some, "user"),
        atol=1e-6,
    )


@pytest.mark.parametrize("frequency", ["rows", "batches"])
def test_a_resumed_run_equals_an_uninterrupted_one(source, tmp_path, frequency):
    settings = config(source, method={"frequency": {"source": frequency, "buckets": 512}})
    whole = mmcl.train(settings, out=tmp_path / "whole").model
    mmcl.train(settings, out=tmp_path / "part")
    for folder in sorted((tmp_path / "part/checkpoints").iterdir())[1:]:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    resumed = mmcl.train(settings, out=tmp_path / "part", resume=True).model
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_micro_batches_learn_what_the_whole_batch_does(source, tmp_path):
    whole, parts = (
        mmcl.train(config(source, training={"micro_batch": size, "epochs": 1}), out=tmp_path / str(size)).model
        for size in (64, 20)
    )
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_texts_go_through_a_text_tower(source, tmp_path):
    title = {"kind": "text", "layers": 1, "width": 16, "heads": 2, "tokenizer": {"vocab_size": 50}}
    run = mmcl.train(config(source, item={"title": title}, training={"epochs": 1}), out=tmp_path / "run")
    encoder = mmcl.load(run.folder)
    base = {"item_id": "3", "kinds": ["odd"]}
    titled = encoder.encode([base | {"title": "number 3"}, base | {"title": "of them of them"}], "item")
    assert not np.allclose(titled[0], titled[1])


def test_images_go_through_an_image_tower_and_a_missing_one_leaves_its_row_out(tmp_path):
    rng = np.random.default_rng(0)

    def png(colour):
        file = io.BytesIO()
        Image.new("RGB", (32, 32), colour).save(file, "png")
        return file.getvalue()

    covers = {"red": png("red"), "blue": png("blue")}
    table = [{"likes": name, "cover": covers[name]} for name in rng.choice(list(covers), 40)] + [{"likes": "red"}]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "rows.parquet")
    net = {"kind": "image", "name": "timm:resnet10t", "args": {"channels": [8, 8, 8, 8], "stem_width": 8}}
    towers = {"user": {"likes": "category"}, "item": {"cover": net}}
    settings = {
        "method": "two_tower",
        "data": {"train": {"source": str(tmp_path / "rows.parquet")}, "image": {"size": 32}},
        "model": {"dim": 8, "towers": {name: {"modality": "table", "fields": of} for name, of in towers.items()}},
        "training": {"batch_size": 20, "epochs": 1},
    }
    run = mmcl.train(settings, out=tmp_path / "run")
    assert run.card["data"]["skipped"] == 1
    encoder = mmcl.load(run.folder)
    red, blue = encoder.encode([{"cover": covers["red"]}, {"cover": covers["blue"]}], "item")
    assert not np.allclose(red, blue)
    with pytest.raises(MmclError, match="row 1, cover: "):
        encoder.encode([{"cover": covers["red"]}, {"cover": b"no image"}], "item")


def test_a_training_goes_on_from_a_model_with_its_vocabulary(source, tmp_path):
    first = mmcl.train(config(source), out=tmp_path / "first")
    settings = config(source, training={"lr": 1e-9, "epochs": 1})
    settings["model"] = {
        "name": str(first.folder),
        "towers": {name: {"modality": "table"} for name in ("user", "item")},
    }
    again = mmcl.train(settings, out=tmp_path / "again").model
    some = [{"history": ["1", "3"], "age": 25}]
    np.testing.assert_allclose(again.encode(some, "user"), first.model.encode(some, "user"), atol=1e-4)


def test_the_loss_is_corrected_by_the_shares_of_the_items_in_the_training_rows(source, tmp_path):
    from mmcl.config.load import load_config
    from mmcl.data.batches.feed import open_feed
    from mmcl.losses import sampled_softmax
    from mmcl.methods import Step
    from mmcl.training.build import build_method

    settings = load_config(config(source, method={"learn_temperature": False}))
    method = build_method(settings, tmp_path)
    feed = open_feed([settings.data.train], method.reading, settings, None, augmented=True, device=torch.device("cpu"))
    method.count(torch.from_numpy(feed.identities("item")))
    batch = next(feed.batches(0, 1))
    method.eval()
    outputs = method.outputs(batch)
    table = rows()
    drawn = [table[row]["item_id"] for row in batch.rows.tolist()]
    shares = torch.tensor([sum(row["item_id"] == item for row in table) / len(table) for item in drawn])
    users = torch.tensor([table[row]["user_id"] for row in batch.rows.tolist()])
    ids = torch.stack([users, torch.tensor([int(item) for item in drawn])], dim=1)
    wanted = sampled_softmax(outputs.embeddings["user"], outputs.embeddings["item"], shares.log(), 0.07, ids=ids)
    torch.testing.assert_close(method.loss(outputs, Step(0, 10)).value, wanted, atol=1e-5, rtol=1e-5)
    values = batch.inputs["user"]["history/values"]
    assert (values != 0).sum(dim=1).tolist() == [7] * 64  # eight, and not the item of the row


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"user": {"hight": "number"}}, "no column 'hight'.*data.columns.hight"),
        ({"user": {"title": "number"}}, "column 'title' holds no number; set the field's kind to category"),
        ({"user": {"age": {"kind": "category", "min_count": 500}}}, "no value in 500 rows or more"),
        ({"user": {"age": "integer"}}, "kind is asked for"),
        ({"data": {"columns": {"wrong": "x"}}}, "data.columns.wrong: method 'two_tower' has no such role"),
    ],
)
def test_mistakes_are_one_line(source, tmp_path, changed, message):
    settings = config(source, **{name: of for name, of in changed.items() if name != "data"})
    settings["data"] |= changed.get("data", {})
    with pytest.raises(MmclError, match=message):
        mmcl.train(settings, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("inputs", "tower", "message"),
    [
        ([{"age": 3}], "user", "no row has 'history'"),
        (["text"], "user", "input 0 is a str; a row is a dict"),
        ([{"history": [["1"]], "age": 3}], "user", "column 'history' holds what is no value"),
        ([{"history": [], "age": 3}], None, "several table towers; name one: item or user"),
    ],
)
def test_rows_that_cannot_be_encoded_are_one_line(source, tmp_path, inputs, tower, message):
    encoder = mmcl.train(config(source, training={"epochs": 1}), out=tmp_path / "run").model
    with pytest.raises(MmclError, match=message):
        encoder.encode(inputs, tower)


def test_what_a_row_becomes_is_shown_by_its_values(source):
    from mmcl.config.load import load_config
    from mmcl.training.first_views import first_views

    settings = load_config(config(source, user={"history": {"kind": "category", "without": "item_id"}}))
    shown = first_views(settings, 4)
    assert list(shown.columns) == ["user, as seen", "item, as seen"]
    table = rows()
    for name, user, item in zip(shown.names, *shown.columns.values(), strict=True):
        row = table[int(name)]
        others = [each for each in row["history"] if each != row["item_id"]]
        assert user == ["history:", *others, f"age: {(row['age'] - 39.5) / np.std(np.arange(20.0, 60.0)):+.2f}"]
        assert item == ["item_id:", row["item_id"], "kinds:", *row["kinds"]]
