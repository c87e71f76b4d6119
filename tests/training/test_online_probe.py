"""A classifier that learns beside the towers: it changes nothing of them, and goes on where a run is resumed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmcl import train
from mmcl.config.load import load_config
from mmcl.runtime.errors import MmclError
from mmcl.training.checkpoint import list_checkpoints
from mmcl.training.first_views import first_views

from .processes import launch

VIT = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 16, "dynamic_img_size": True}
COLOURS = {"red": (220, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 220)}
SCRIPT = """
import sys, json
from mmcl.training import train
train(json.load(open(sys.argv[1])), out=sys.argv[2])
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Forty-eight images of noisy colours with their names, and a text for each."""
    folder, random, lines = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0), []
    for number in range(48):
        name = list(COLOURS)[number % 3]
        pixels = np.clip(np.array(COLOURS[name]) + random.normal(0, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        text = f"{name} paper, sheet {number % 8} of box {number // 8}"
        lines.append(json.dumps({"image": str(folder / f"{number}.png"), "colour": name, "text": text}) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines))
    return folder / "rows.jsonl"


def config_of(images, probe="colour", **training):
    return {
        "name": "probed",
        "method": {"name": "simclr", "projector": {"hidden": [16], "dim": 8, "norm": "layer"}},
        "data": {"train": {"source": str(images)}, "image": {"size": 16}},
        "model": {"dim": 16, "image": {"name": "timm:vit_tiny_patch16_224", "args": VIT, "head": {"kind": "none"}}},
        "augmentation": {"crop_scale": [0.4, 1.0], "flip": 0.5},
        "training": {
            "epochs": 4, "batch_size": 12, "lr": 1e-3, "log_every": 1, "save_every": 6, "precision": "float32",
            "device": "cpu", **training,
        },
        "evaluation": {} if probe is None else {"probe": probe},
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    return train(config_of(images), out=tmp_path_factory.mktemp("runs") / "run")


SMALL = {"hidden": [16], "dim": 8, "norm": "layer"}
PAIRS = {
    "clip": {"name": "clip", "queue": {"size": 20}},
    "slip": {"name": "slip", "image": {"projector": SMALL}},
    "simcse": {"name": "simcse", "queue": {"size": 20}},
}


def pairs_of(images, name, probe):
    config = config_of(images, probe, epochs=1) | {"method": PAIRS[name]}
    text = {"name": "scratch", "layers": 1, "width": 16, "heads": 2, "tokenizer": {"vocab_size": 60}}
    model = {"dim": 12, "image": {"name": "timm:vit_tiny_patch16_224", "args": VIT}, "text": text}
    if name == "simcse":
        del model["image"], config["augmentation"]
    return config | {"model": model}


def state(run):
    return load_file(list_checkpoints(run)[-1] / "model.safetensors")


def test_the_log_has_its_accuracy_and_the_weights_are_as_without_it(run, images, tmp_path):
    logged = [line["probe_accuracy"] for line in run.lines() if "probe_accuracy" in line]
    assert len(logged) == 16
    assert np.mean(logged[-4:]) > np.mean(logged[:2])
    assert np.mean(logged[-4:]) > 0.6
    plain = train(config_of(images, probe=None), out=tmp_path / "plain")
    ours, theirs = (load_file(each.folder / "model" / "model.safetensors") for each in (run, plain))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert not any("probe" in name for name in ours)


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_compared_as_without_it(images, tmp_path, name):
    """Its labels are no identities: rows that share one stay each other's negatives."""
    with_probe, plain = (train(pairs_of(images, name, probe), out=tmp_path / str(probe)) for probe in ("colour", None))
    lines, others = ([line for line in run.lines() if "loss" in line] for run in (with_probe, plain))
    assert all("probe_accuracy" in line for line in lines)
    for key in ("loss", "accuracy"):
        assert [line[key] for line in lines] == [line[key] for line in others]


def test_the_first_views_can_be_looked_at(images):
    assert "image, view 1" in first_views(load_config(config_of(images)), rows=3).columns


def test_a_resumed_run_goes_on_bit_for_bit(run, images, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    for newer in list_checkpoints(tmp_path / "run")[1:]:
        shutil.rmtree(newer)
    resumed = train(config_of(images), out=tmp_path / "run", resume=True)
    ours, theirs = state(run.folder), state(tmp_path / "run")
    assert ours["probe.weight"].abs().max() > 0
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    found, expected = ([line.get("probe_loss") for line in each.lines()] for each in (resumed, run))
    assert found == expected


def test_two_processes_and_micro_batches_agree_with_one(run, images, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_of(images)))
    launch(SCRIPT, path, tmp_path / "two")
    train(config_of(images, micro_batch=3), out=tmp_path / "micro")
    for other in ("two", "micro"):
        torch.testing.assert_close(
            state(tmp_path / other)["probe.weight"], state(run.folder)["probe.weight"], rtol=1e-3, atol=1e-4
        )


def test_a_column_that_is_not_there_is_named_by_its_setting(images, tmp_path):
    with pytest.raises(MmclError, match=r"no column 'shape'.*; name another with evaluation\.probe"):
        train(config_of(images, probe="shape"), out=tmp_path / "run")
