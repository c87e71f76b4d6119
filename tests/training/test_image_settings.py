"""Settings of training, on a small ResNet that learns from images alone."""

from __future__ import annotations

import re

import numpy as np
import pytest
from lightly.utils.scheduler import cosine_schedule
from PIL import Image

from mmcl.config.load import load_config
from mmcl.methods import Step
from mmcl.runtime.errors import MmclError
from mmcl.training import train
from mmcl.training.build import build_method
from mmcl.training.loop import Trainer


@pytest.fixture
def config(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(24):
        Image.fromarray(random.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(folder / f"{number:02d}.png")
    return {
        "name": "small",
        "method": {"name": "barlow_twins", "projector": {"hidden": [16], "dim": 8}},
        "data": {"train": {"source": str(folder)}, "image": {"size": 16}},
        "model": {
            "dim": 64,
            "image": {"name": "cifar:resnet10", "args": {"width": 8}, "head": {"kind": "none"}},
        },
        "augmentation": {"crop_scale": [0.4, 1.0]},
        "training": {"epochs": 2, "batch_size": 8, "log_every": 1, "precision": "float32", "device": "cpu"},
    }


def test_weight_decay_follows_a_cosine(tmp_path, config):
    config["training"] |= {"optimizer": "lars", "weight_decay": 0.04, "weight_decay_end": 0.4}
    trainer = Trainer(load_config(config), tmp_path / "run", resume=False, show_progress=False)
    trainer.method.train()
    (batch,) = list(trainer.feed.batches(0, 1))
    for number in range(4):
        trainer.step([batch], Step(number, 4), 1e-3)
        decays = sorted({group["weight_decay"] for group in trainer.step.optimizer.param_groups})
        assert decays == pytest.approx([0.0, cosine_schedule(number, 4, 0.04, 0.4)])
    trainer.metrics.close()


def test_the_scaled_rate_is_said_and_taken(tmp_path, config, caplog):
    caplog.set_level("INFO", "mmcl")
    config["training"] |= {"lr": 0.32, "lr_scaling": "linear", "optimizer": "sgd", "schedule": "constant", "warmup": 0}
    run = train(config, out=tmp_path / "run", show_progress=False)
    assert "learning rate at its peak: 0.01 (training.lr for 256 rows, scaled to 8)" in caplog.text
    assert {line["lr"] for line in run.lines() if "lr" in line} == {0.01}
    assert re.search(r"lr[^\n]*0\.01", (run.folder / "model" / "README.md").read_text())


@pytest.mark.parametrize(
    "augmentation", [{"blur_sigma": [1.0, 2.0]}, {"crop_ratio": [0.5, 2.0]}, {"jitter_prob": 0.8}, {"size": 8}]
)
def test_settings_that_change_nothing_are_no_augmentation(tmp_path, config, augmentation):
    config["augmentation"] = augmentation
    with pytest.raises(MmclError, match="without augmentation both views of an image are the same"):
        build_method(load_config(config), tmp_path)
    config["augmentation"] = augmentation | {"second": {"solarise": 0.1}}
    build_method(load_config(config), tmp_path)


def test_changes_of_a_second_view_are_refused_where_there_is_one_view(tmp_path, config):
    config["augmentation"]["second"] = {"flip": 0.5}
    build_method(load_config(config), tmp_path)
    config["method"] = {"name": "siamese"}
    with pytest.raises(MmclError, match=r"augmentation\.second: method 'siamese' takes one view of each image"):
        build_method(load_config(config), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["byol", "swav"])
def test_compiled_towers_learn_what_plain_ones_learn(tmp_path, config, name):
    """With a momentum copy, and with crops of two sizes."""
    heads = {"projector": {"hidden": [16], "dim": 8}}
    config["method"] = {
        "byol": {"name": "byol", **heads, "predictor": {"hidden": [16]}},
        "swav": {"name": "swav", **heads, "prototypes": 6, "local_size": 8, "queue": 0},
    }[name]
    losses = []
    for compiled in (False, True):
        config["training"]["compile"] = compiled
        run = train(config, out=tmp_path / str(compiled), show_progress=False)
        losses.append([line["loss"] for line in run.lines() if "loss" in line])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
