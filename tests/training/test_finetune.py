"""Fine-tuning through the loop: what is frozen stays, what is adapted is merged, and a resumed run is the same."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

import mmcl
from mmcl.runtime.errors import MmclError
from mmcl.training import train
from mmcl.training.checkpoint import list_checkpoints


@pytest.fixture
def adapted(shapes_config):
    """Adapters in the text tower, the image tower's first block frozen, rates by layer and by group; four steps."""
    config = shapes_config | {"evaluation": {}, "model": dict(shapes_config["model"])}
    config["model"]["image"] = config["model"]["image"] | {"freeze_blocks": 1}
    config["model"]["text"] = config["model"]["text"] | {"layers": 2, "freeze_blocks": 1, "lora": {"rank": 2}}
    groups = [{"match": "logit_scale", "lr": 0}, {"match": "head", "lr": 2.0}]
    settings = {"epochs": 0.064, "save_every": 2, "keep": 5, "layer_decay": 0.5, "groups": groups}
    return config | {"training": config["training"] | settings}


def test_a_resumed_run_equals_one_left_alone_and_the_model_is_an_ordinary_one(tmp_path, adapted):
    uninterrupted = train(adapted, out=tmp_path / "uninterrupted").folder
    checkpoints = list_checkpoints(uninterrupted)
    assert len(checkpoints) == 2
    broken = tmp_path / "broken"
    shutil.copytree(uninterrupted, broken)
    shutil.rmtree(broken / "model")
    shutil.rmtree(list_checkpoints(broken)[-1])
    train(adapted, out=broken, resume=True)
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (broken, uninterrupted))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not any("lora" in name or "base_layer" in name for name in ours)
    assert mmcl.load(uninterrupted).encode("a small red circle").shape == (64,)

    first, last = (load_file(checkpoint / "model.safetensors") for checkpoint in checkpoints)
    assert first.keys() == last.keys()
    weights = {name for name in first if "running_" not in name and "num_batches" not in name}
    assert not [name for name in weights if torch.equal(first[name], last[name])], "it holds what learns, only"
    assert not [name for name in weights if ".net.layer1.0." in name or ".net.conv1." in name]
    text = {name for name in first if ".text.tower." in name}
    assert text
    assert all("layer.1." in name and ".lora_" in name for name in text)
    assert "logit_scale" not in first


@pytest.mark.parametrize("setting", ["image.freeze_blocks=1", "image.patch_dropout=0.5", "text.lora={}"])
def test_what_would_do_nothing_in_a_frozen_tower_is_refused(tmp_path, setting, shapes_config):
    modality = setting.split(".")[0]
    vit = {"name": "timm:vit_tiny_patch16_224", "args": {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 32}}
    shapes_config["model"]["image"] = vit
    changes = [f"model.{modality}.frozen=true", f"model.{setting}"]
    with pytest.raises(MmclError, match=f"model.{setting.split('=')[0]} does nothing"):
        train(shapes_config, out=tmp_path / "run", overrides=changes)
