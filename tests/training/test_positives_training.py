"""Any number of positives, end to end: labels over several processes, and data that cannot be learned from."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmcl import train
from mmcl.config.load import load_config
from mmcl.runtime.errors import MmclError

from .processes import launch

VIT = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 16, "dynamic_img_size": True}
SCRIPT = """
import sys, json
from mmcl.training import loop, train

wrapped = loop.parallel_method
loop.parallel_method = lambda method, *rest: wrapped(method.double(), *rest)
train(json.load(open(sys.argv[1])), out=sys.argv[2], show_progress=False)
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The paths of 24 images."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for number in range(24):
        pixels = random.integers(0, 256, (16, 1, 3)) * np.ones((1, 16, 1))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02d}.png")
    return [str(folder / f"{number:02d}.png") for number in range(24)]


def table(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sup_con(source, **training):
    return {
        "name": "positives",
        "method": {"name": "sup_con", "projector": {"hidden": [16], "dim": 8, "norm": "layer"}},
        "data": {"train": {"source": source}, "image": {"size": 16}},
        "model": {"dim": 16, "image": {"name": "timm:vit_tiny_patch16_224", "args": VIT, "head": {"kind": "none"}}},
        "augmentation": {"crop_scale": [0.4, 1.0], "flip": 0.5},
        "training": {
            "epochs": 1, "batch_size": 8, "lr": 1e-3, "log_every": 1, "save_every": 2, "precision": "float32",
            "device": "cpu", **training,
        },
    }  # fmt: skip


def learned(run):
    """What the last checkpoint holds."""
    return load_file(max((run / "checkpoints").iterdir()) / "model.safetensors")


@pytest.mark.slow
def test_labels_on_two_and_four_processes_learn_in_float64_what_one_learns(tmp_path, images):
    source = table(tmp_path / "rows.jsonl", [{"image": path, "label": n % 5} for n, path in enumerate(images)])
    for exchange, processes in (("gather", 1), ("gather", 2), ("ring", 4)):
        path = tmp_path / f"{exchange}.json"
        path.write_text(json.dumps(sup_con(source, exchange=exchange)))
        launch(SCRIPT, path, tmp_path / f"{exchange}-{processes}", processes=processes)
    alone = learned(tmp_path / "gather-1")
    for other in ("gather-2", "ring-4"):
        for key, tensor in learned(tmp_path / other).items():
            torch.testing.assert_close(tensor, alone[key], rtol=1e-7, atol=1e-10, msg=f"{other}: {key}")


def test_labels_that_are_missing_or_tell_nothing_apart_are_one_line(tmp_path, images):
    for rows, message in [
        ([{"image": path} for path in images], "no column 'label'; it has image; name another with data.columns.label"),
        (
            [{"image": path, "label": None} for path in images],
            "none of the 24 rows can be used; row 0, label:",
        ),
        ([{"image": path, "label": "cat"} for path in images], "all 24 rows have one and the same label in column"),
    ]:
        config = load_config(sup_con(table(tmp_path / "rows.jsonl", rows)))
        with pytest.raises(MmclError, match=message):
            train(config, out=tmp_path / "run", show_progress=False)
