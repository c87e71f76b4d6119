"""A run that collapses is warned of once, and one that does not is left alone."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mmcl import train
from mmcl.losses.without_negatives.negative_cosine import negative_cosine
from mmcl.methods import Loss, Outputs, Simclr
from mmcl.methods.image.image_only import both_views
from mmcl.methods.outputs import Rows
from mmcl.training.callbacks.collapse import CollapseWarning, collapse
from mmcl.training.checkpoint import Progress

VIT = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 16, "dynamic_img_size": True}


@pytest.fixture
def config(tmp_path):
    """SimCLR on forty images of noise on a colour: sixty steps, each logged."""
    random, lines = np.random.default_rng(0), []
    for number in range(40):
        pixels = np.clip(random.normal(0, 40, (16, 16, 3)) + random.integers(0, 256, 3), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png"}) + "\n")
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    return {
        "name": "collapse",
        "method": {"name": "simclr", "projector": {"hidden": [16], "dim": 16, "norm": "layer"}},
        "data": {"train": {"source": str(tmp_path / "rows.jsonl")}, "image": {"size": 16}},
        "model": {"dim": 16, "image": {"name": "timm:vit_tiny_patch16_224", "args": VIT, "head": {"kind": "none"}}},
        "augmentation": {"crop_scale": [0.4, 1.0], "flip": 0.5},
        "training": {
            "epochs": 30, "batch_size": 20, "lr": 1e-2, "log_every": 1, "precision": "float32", "device": "cpu",
        },
    }  # fmt: skip


def test_a_run_without_anything_to_keep_views_apart_collapses_and_says_so_once(config, tmp_path, monkeypatch, caplog):
    def only_alike(self, outputs, step):  # BYOL without predictor, momentum and batch normalisation
        return Loss(negative_cosine(*both_views(outputs)))

    monkeypatch.setattr(Simclr, "loss", only_alike)
    train(config, out=tmp_path / "run")
    assert caplog.text.count("the image embeddings have collapsed") == 1


def test_a_run_that_learns_is_left_alone(config, tmp_path, caplog):
    train(config, out=tmp_path / "run")
    assert "collapsed" not in caplog.text


def test_one_point_and_one_line_are_collapsed_and_a_cone_is_not():
    random = torch.Generator().manual_seed(0)
    noise, point = torch.randn(300, 64, generator=random), torch.randn(64, generator=random)
    assert collapse(noise) is None
    assert collapse(noise + 3 * point) is None  # a mean cosine of 0.9
    assert collapse(noise[:, :4] @ torch.randn(4, 64, generator=random)) is None
    assert "spread" in collapse(0.01 * noise + point)
    assert "spread is 0.000" in collapse(torch.ones(40, 8))
    assert "effective rank (RankMe) is 1.0 of 64" in collapse(noise[:, :1] * point)
    assert collapse(torch.ones(15, 8)) is None  # too few to tell


def test_an_odd_batch_or_the_first_steps_are_no_collapse(caplog):
    def outputs(vectors):
        return Outputs({"image": vectors}, Rows(torch.zeros(len(vectors), 1, dtype=torch.int64)))

    alike, apart = outputs(torch.ones(40, 8)), outputs(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)))
    looked = CollapseWarning(SimpleNamespace(views=lambda: {"image": None}), steps=100)
    for step, seen in enumerate([alike] * 9 + [alike, alike, apart] * 4, start=1):
        looked.on_log(Progress(step=step), seen)
    assert not caplog.records
    for step in range(50, 60):
        looked.on_log(Progress(step=step), alike)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["step 52"]
