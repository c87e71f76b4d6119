"""Going on from a whole model: fine-tuning, the ensemble with the start, and a run repeated from its own config."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mmcl
from mmcl.training import train


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model that has learned for a moment."""
    config = {
        "data": {"train": {"source": "sample:shapes", "split": "train"}, "image": {"size": 32}},
        "model": {
            "dim": 16,
            "image": {"name": "timm:resnet10t", "args": {"channels": [8, 8, 8, 8], "stem_width": 8}},
            "text": {"name": "scratch", "layers": 1, "width": 16, "heads": 2, "tokenizer": {"vocab_size": 80}},
        },
        "training": {"epochs": 0.05, "batch_size": 32},
    }
    return train(config, out=tmp_path_factory.mktemp("start") / "run", show_progress=False)


@pytest.fixture
def tuned(start):
    return {
        "data": {"train": {"source": "sample:shapes", "split": "train"}},
        "model": {"name": str(start.folder), "text": {"frozen": True}},
        "training": {
            "epochs": 0.05,
            "batch_size": 32,
            "lr": 1e-2,
            "wise_ft": [0.0, 0.5, 1.0],
            "log_every": 2,
        },
        "evaluation": {
            "sources": {"dev": {"source": "sample:shapes", "split": "dev"}},
            "best": "dev/image_to_text/hit@10",
        },
    }


def test_the_best_ensemble_with_the_start_is_saved(tmp_path, tuned, start):
    run = train(tuned, out=tmp_path / "run", show_progress=False)
    line = next(line for line in run.lines() if "wise_ft" in line)
    share = line["wise_ft"]
    assert run.card["training"]["wise_ft"] == share
    before = load_file(start.folder / "model" / "model.safetensors")
    saved = load_file(run.folder / "model" / "model.safetensors")
    last = load_file(sorted((run.folder / "checkpoints").iterdir())[-1] / "model.safetensors")
    moved = [name for name, tensor in last.items() if tensor.is_floating_point() and "embedders" in name]
    assert moved
    for name in moved:
        key = name.removeprefix("encoder.embedders.")
        torch.testing.assert_close(saved[key], torch.lerp(before[key], last[name], share))
    assert run.metrics["dev/image_to_text/hit@10"] == line["evaluation"]["dev/image_to_text/hit@10"]
    judged = mmcl.load(run.folder)
    assert judged.logit_scale is not None


def test_the_temperature_goes_on_from_the_starting_model(tmp_path, tuned, start):
    tuned["training"] |= {"wise_ft": [], "lr": 1e-9, "epochs": 0.02}
    run = train(tuned, out=tmp_path / "run", show_progress=False)
    assert run.model.logit_scale == pytest.approx(start.model.logit_scale, abs=1e-6)
    np.testing.assert_allclose(run.model.encode("a red circle"), start.model.encode("a red circle"), atol=1e-5)


def test_a_run_can_be_repeated_from_its_own_config(tmp_path, tuned):
    first = train(tuned, out=tmp_path / "first", show_progress=False)
    again = train(first.folder / "config.yaml", out=tmp_path / "again", show_progress=False)
    logs = [[line for line in map(json.dumps, run.lines()) if "loss" in line] for run in (first, again)]
    losses = [[json.loads(line)["loss"] for line in lines] for lines in logs]
    assert losses[0] == losses[1]
