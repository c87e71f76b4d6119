"""Runs with a queue: what they leave behind, how they go on, and that several processes are one."""

from __future__ import annotations

import json
import logging
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mmcl.config.load import load_config, to_yaml
from mmcl.runtime.errors import MmclError
from mmcl.training import train
from mmcl.training.checkpoint import changed_names, learned_names, list_checkpoints
from mmcl.training.loop import Trainer

from .processes import TRAIN, launch
from .test_distributed import same_run

QUEUE = {"size": 100, "momentum": 0.9, "start": 2}  # no multiple of the batch; full after two steps


@pytest.fixture
def tiny(shapes_config):
    """Twelve steps with dropout, augmentation and running statistics: everything that resuming must restore."""
    settings = {"epochs": 0.2, "save_every": 3, "keep": 3}
    training = shapes_config["training"] | settings
    return shapes_config | {"training": training, "evaluation": {}, "method": {"name": "clip", "queue": QUEUE}}


@pytest.mark.parametrize("momentum", [pytest.param(None, marks=pytest.mark.slow), 0.9])
def test_a_resumed_run_equals_one_left_alone_bit_for_bit(tmp_path, tiny, momentum):
    tiny["method"] = {"name": "clip", "queue": QUEUE | {"momentum": momentum}}
    train(tiny, out=tmp_path / "uninterrupted", show_progress=False)
    last = list_checkpoints(tmp_path / "uninterrupted")[-1]
    shutil.copytree(tmp_path / "uninterrupted", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "model")
    for checkpoint in list_checkpoints(tmp_path / "cut")[1:]:
        shutil.rmtree(checkpoint)
    train(tiny, out=tmp_path / "cut", resume=True, show_progress=False)
    for file in (f"checkpoints/{last.name}/model.safetensors", "model/model.safetensors"):
        uninterrupted, resumed = (load_file(tmp_path / run / file) for run in ("uninterrupted", "cut"))
        assert uninterrupted.keys() == resumed.keys()
        assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted)


def test_queue_and_copy_are_in_checkpoints_but_neither_averaged_nor_interpolated_nor_saved(tmp_path, tiny, caplog):
    tiny["training"] |= {"average": 0.9, "wise_ft": [1.0], "epochs": 0.1}
    with caplog.at_level(logging.INFO, logger="mmcl"):
        train(tiny, out=tmp_path / "run", show_progress=False)
    last = list_checkpoints(tmp_path / "run")[-1]
    beside = ("queue.", "momentum.")
    names = {path: set(load_file(path)) for path in tmp_path.glob("run/**/*.safetensors")}
    assert {"queue.vectors_image", "queue.vectors_text", "queue.ids", "queue.pushed", "queue.steps"} <= names[
        last / "model.safetensors"
    ]
    assert any(name.startswith("momentum.parts.image.tower") for name in names[last / "model.safetensors"])
    for file in (
        last / "average.safetensors",
        tmp_path / "run/start.safetensors",
        tmp_path / "run/model/model.safetensors",
    ):
        assert names[file]
        assert not any(part in name for name in names[file] for part in beside), file
    assert "63 negatives per query and up to 100 queued ones" in caplog.text
    learned = next(record.message for record in caplog.records if record.message.startswith("learned parameters"))
    assert "momentum" not in learned


def test_what_is_frozen_is_kept_once(tmp_path, tiny):
    tiny["model"]["text"] |= {"frozen": True}
    tiny["training"] |= {"groups": [{"match": "image.tower", "lr": 0}]}
    method = Trainer(load_config(tiny), tmp_path / "run", resume=False).method
    towers = {name for name in changed_names(method) if ".tower." in name and name.endswith(("weight", "bias"))}
    assert not {name for name in towers if "text" in name}
    assert learned_names(method).isdisjoint(changed_names(method) - learned_names(method))
    frozen = method.momentum.parts["text"].tower
    assert all(own is other for own, other in zip(
        frozen.parameters(), method.encoder.embedder("text").tower.parameters(), strict=True
    ))  # fmt: skip


def test_micro_batches_change_nothing(tmp_path, tiny):
    """Gradient caching sees the same keys, and pushes each once."""
    image = {"name": "timm:vit_tiny_patch16_224"}
    image["args"] = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 32}
    tiny["model"]["image"] = image
    tiny["model"]["text"] |= {"dropout": 0}
    tiny["training"] |= {"epochs": 0.1, "log_every": 1, "precision": "float32"}
    for name, size in (("plain", "null"), ("cached", "24")):
        train(tiny, out=tmp_path / name, overrides=[f"training.micro_batch={size}"], show_progress=False)
    same_run(tmp_path / "plain", tmp_path / "cached")
    queues = [load_file(list_checkpoints(tmp_path / n)[-1] / "model.safetensors") for n in ("plain", "cached")]
    assert torch.equal(queues[0]["queue.ids"], queues[1]["queue.ids"])
    assert int(queues[1]["queue.pushed"]) == 6 * 64


@pytest.fixture
def pairs_config(tmp_path):
    """Pairs of sentences and a head for training, without dropout: nothing but the loss joins the rows."""
    animals, verbs = ("dog", "cat", "cow", "hen", "fox", "owl"), ("runs", "sleeps", "eats", "sings", "waits", "hides")
    rows = [{"anchor": f"a {a} {v}", "positive": f"the {a} {v}"} for a in animals for v in verbs]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tower = {"name": "scratch", "layers": 1, "width": 16, "heads": 2, "dropout": 0, "tokenizer": {"vocab_size": 60}}
    training = {"epochs": 2, "batch_size": 6, "accumulate": 2, "log_every": 1, "save_every": 3}
    training["precision"] = "float32"  # two processes add up in another order
    return {
        "method": {"name": "simcse", "training_head": True, "symmetric": True},
        "data": {"train": {"source": str(tmp_path / "rows.jsonl")}, "columns": {role: role for role in rows[0]}},
        "model": {"dim": 16, "text": {**tower, "head": {"kind": "none"}}},
        "training": training,
    }


def test_a_guide_that_is_meant_to_be_cut_fits_into_the_queue(tmp_path, pairs_config):
    """The loss sees all of its dimensions, whatever it encodes by default."""
    pairs_config["training"] |= {"epochs": 1, "accumulate": 1}
    guide = train(pairs_config, out=tmp_path / "guide", show_progress=False).model
    guide.conventions = replace(guide.conventions, truncate_dim=8)
    guide.save(tmp_path / "cut")
    pairs_config["method"] |= {"guide": {"name": str(tmp_path / "cut")}, "queue": {"size": 15}}
    run = train(pairs_config, out=tmp_path / "run", show_progress=False)
    assert all(math.isfinite(line["loss"]) for line in run.lines())
    queue = load_file(list_checkpoints(tmp_path / "run")[-1] / "model.safetensors")
    assert queue["queue.vectors_guide_positive"].shape == (15, 16)


@pytest.mark.parametrize(
    ("parallel", "exchange", "momentum"),
    [
        pytest.param("ddp", "gather", None, marks=pytest.mark.slow),
        ("ddp", "ring", 0.8),
        pytest.param("fsdp", "gather", 0.8, marks=pytest.mark.slow),
    ],
)
def test_two_processes_equal_one(tmp_path, pairs_config, parallel, exchange, momentum):
    """A copy of what is in shards is in the same shards."""
    pairs_config["method"]["queue"] = {"size": 15, "momentum": momentum}
    pairs_config["training"] |= {"parallel": parallel, "exchange": exchange}
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(load_config(pairs_config)))
    train(path, out=tmp_path / "one", show_progress=False)
    launch(TRAIN, path, tmp_path / "two", processes=2)
    assert len(same_run(tmp_path / "one", tmp_path / "two")) == 6
    one, two = (load_file(list_checkpoints(tmp_path / n)[-1] / "model.safetensors") for n in ("one", "two"))
    assert one.keys() == two.keys()
    assert torch.equal(one["queue.ids"], two["queue.ids"])
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_queue_that_would_never_count_is_refused(tmp_path, tiny):
    with pytest.raises(MmclError, match=r"^method\.queue\.start: 12, but the run has 12 steps.*; lower it"):
        train(tiny, out=tmp_path / "run", overrides=["method.queue.start=12"], show_progress=False)
    train(tiny, out=tmp_path / "run", overrides=["method.queue.start=11"], show_progress=False)
