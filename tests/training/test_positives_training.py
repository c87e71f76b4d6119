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
from mmcl.methods import Step
from mmcl.runtime.errors import MmclError
from mmcl.training.loop import Trainer

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


def clip(folder, images, **training):
    """Several drawings and several names of each thing, ragged."""
    drawings = [images[:5], images[5:6], images[6:9], images[9:13], images[13:15], images[15:]]
    names = [[f"thing {n}", f"object {n}", f"what {n} is"][: 1 + n % 3] for n in range(6)]
    rows = [{"image": image, "text": name} for image, name in zip(drawings, names, strict=True)]
    text = {"name": "scratch", "layers": 1, "width": 16, "heads": 2, "dropout": 0.0, "tokenizer": {"vocab_size": 60}}
    config = sup_con(table(folder / "drawings.jsonl", rows), **training)
    config["data"] |= {"explode": "image", "per_label": 4}
    config["model"]["text"] = text | {"head": {"kind": "none"}}
    return config | {"method": {"name": "clip", "label_smoothing": 0.1}}


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


def test_drawings_of_a_thing_go_on_to_the_same_bits_and_learn_in_micro_batches_what_the_batch_learns(tmp_path, images):
    config = clip(tmp_path, images, epochs=2, save_every=2)
    complete = train(config, out=tmp_path / "complete", show_progress=False)
    assert len([line for line in complete.lines() if "loss" in line]) == 6
    step = Trainer._step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", lambda self, *given: interrupt() if given[1] == 5 else step(self, *given))
        with pytest.raises(KeyboardInterrupt):
            train(config, out=tmp_path / "cut", show_progress=False)
    train(config, out=tmp_path / "cut", resume=True, show_progress=False)
    ours, theirs = learned(tmp_path / "complete"), learned(tmp_path / "cut")
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())
    found = []
    for micro_batch in (None, 3):
        config = load_config(clip(tmp_path, images, micro_batch=micro_batch))
        trainer = Trainer(config, tmp_path / str(micro_batch), resume=False, show_progress=False)
        trainer.method.double().train()
        results = [trainer.step([batch], Step(n, 3), 1e-2) for n, batch in enumerate(trainer.feed.batches(0, 3))]
        found.append(([result.loss for result in results], trainer.method.state_dict()))
        trainer.metrics.close()
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-9)
    for name, tensor in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], tensor, rtol=1e-7, atol=1e-9, msg=name)


def interrupt():
    raise KeyboardInterrupt


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
