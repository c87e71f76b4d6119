"""SLIP end to end: cut off and resumed, in micro-batches, on two processes with and without shards."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmcl import load, train
from mmcl.config.load import load_config
from mmcl.methods import Step
from mmcl.training.loop import Trainer

from .processes import launch

VIT = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 16}
SCRIPT = """
import sys, json
from mmcl.training import train
train(json.load(open(sys.argv[1])), out=sys.argv[2])
"""


def config_of(**training):
    return {
        "name": "slip",
        "method": {"name": "slip", "image": {"projector": {"hidden": [16], "dim": 8}}},
        "data": {"train": {"source": "sample:shapes", "split": "dev"}, "image": {"size": 16}},
        "model": {
            "dim": 12,
            "image": {"name": "timm:vit_tiny_patch16_224", "args": VIT},
            "text": {
                "name": "scratch", "layers": 1, "width": 16, "heads": 2, "dropout": 0.0,
                "tokenizer": {"vocab_size": 80},
            },
        },
        "augmentation": {"crop_scale": [0.4, 1.0], "flip": 0.5, "brightness": 0.3},
        "training": {
            "epochs": 0.2, "batch_size": 8, "lr": 1e-3, "log_every": 1, "save_every": 3, "precision": "float32",
            "device": "cpu", **training,
        },
    }  # fmt: skip


def weights(folder, file="model"):
    return load_file(folder / "model" / f"{file}.safetensors")


def test_goes_on_to_the_same_bits_and_keeps_its_head(tmp_path, train_until):
    config = config_of()
    uninterrupted = train(config, out=tmp_path / "uninterrupted", show_progress=False)
    lines = [line for line in uninterrupted.lines() if "loss" in line]
    assert len(lines) == 10
    assert all(line["loss"] == pytest.approx(line["contrastive"] + line["image"]) for line in lines)
    train_until(5, config, tmp_path / "cut")
    train(config, out=tmp_path / "cut", resume=True, show_progress=False)
    for file in ("model", "heads"):
        ours, theirs = weights(tmp_path / "uninterrupted", file), weights(tmp_path / "cut", file)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    encoder = load(tmp_path / "cut")
    assert encoder.modalities == {"image", "text"}
    assert encoder.towers.heads.keys() == {"projector"}


def test_micro_batches_learn_what_the_batch_learns(tmp_path):
    found = []
    for micro_batch in (None, 3):
        config = load_config(config_of(micro_batch=micro_batch))
        trainer = Trainer(config, tmp_path / str(micro_batch), resume=False, show_progress=False)
        trainer.method.double().train()
        batches = trainer.feed.batches(0, 3)
        results = [trainer.step([batch], Step(number, 3), 1e-2) for number, batch in enumerate(batches)]
        found.append(([[r.loss, r.norm] for r in results], trainer.method.state_dict()))
        trainer.metrics.close()
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)
    for key, tensor in found[0][1].items():
        torch.testing.assert_close(found[1][1][key], tensor, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_learns(tmp_path, parallel):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_of(parallel=parallel)))
    launch(SCRIPT, path, tmp_path / "two")
    launch(SCRIPT, path, tmp_path / "one", processes=1)
    ours, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key, tensor in ours.items():
        torch.testing.assert_close(theirs[key], tensor, rtol=1e-3, atol=1e-4, msg=key)
