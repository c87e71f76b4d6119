"""Methods over images alone, end to end: trained, cut off and resumed, in micro-batches, on two processes."""

from __future__ import annotations

import itertools
import json
import shutil
import traceback

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from mmcl import load, train
from mmcl.config import Config
from mmcl.config.load import load_config
from mmcl.methods import Simclr, Step
from mmcl.methods.parts.queue import MemoryQueue
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import sha256_file
from mmcl.training.build import build_method
from mmcl.training.checkpoint import list_checkpoints
from mmcl.training.loop import Trainer

from .processes import launch

SMALL = {"hidden": [16], "dim": 8, "norm": "layer"}
OF_BATCH = SMALL | {"norm": "batch"}  # whose statistics are those of the global batch, however it is divided
METHODS = {
    "simclr": {"name": "simclr", "projector": SMALL},
    "moco": {"name": "moco", "projector": SMALL | {"norm": "none"}, "queue": 20, "momentum": 0.9},
    "simsiam": {"name": "simsiam", "projector": OF_BATCH | {"norm_output": True}, "predictor": OF_BATCH},
    "byol": {"name": "byol", "projector": SMALL, "predictor": SMALL, "momentum": 0.9},
    "swav": {
        "name": "swav", "projector": SMALL, "prototypes": 6, "local_size": 8, "queue": 24, "queue_start": 2,
        "freeze_prototypes": 1,
    },
    "dino": {
        "name": "dino", "projector": SMALL | {"norm": "none"}, "prototypes": 6, "local_crops": 2, "local_size": 8,
        "freeze_prototypes": 1, "momentum": 0.9,
    },
    "lejepa": {"name": "lejepa", "projector": SMALL, "local_crops": 2, "local_size": 8, "directions": 16},
    "barlow_twins": {"name": "barlow_twins", "projector": SMALL},
    "vicreg": {"name": "vicreg", "projector": OF_BATCH},
    "sup_con": {"name": "sup_con", "projector": SMALL},
}  # fmt: skip
HEADS = {
    "simclr": {"projector"},
    "moco": {"projector"},
    "simsiam": {"projector", "predictor"},
    "byol": {"projector", "predictor"},
    "swav": {"projector", "prototypes"},
    "dino": {"projector", "prototypes"},
    "lejepa": {"projector"},
    "barlow_twins": {"projector"},
    "vicreg": {"projector"},
    "sup_con": {"projector"},
}
VIT = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 16, "dynamic_img_size": True}
SCRIPT = """
import sys, json
from mmcl.training import train
train(json.load(open(sys.argv[1])), out=sys.argv[2])
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Forty images of coloured stripes, with labels."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for number in range(40):
        stripes = random.integers(0, 256, (16, 1, 3)) * np.ones((1, 16, 1))
        pixels = stripes if number % 2 else stripes.transpose(1, 0, 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02d}.png")
    rows = [{"image": str(folder / f"{number:02d}.png"), "label": number % 3} for number in range(40)]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_of(images, name, **training):
    return {
        "name": name,
        "method": METHODS[name],
        "data": {"train": {"source": str(images)}, "image": {"size": 16}},
        "model": {"dim": 16, "image": {"name": "timm:vit_tiny_patch16_224", "args": VIT, "head": {"kind": "none"}}},
        "augmentation": {"crop_scale": [0.4, 1.0], "flip": 0.5, "brightness": 0.3},
        "training": {
            "epochs": 2, "batch_size": 8, "lr": 1e-3, "log_every": 1, "save_every": 3, "precision": "float32",
            "device": "cpu", **training,
        },
    }  # fmt: skip


def weights(run, file="model"):
    return load_file(run / "model" / f"{file}.safetensors")


def name_heads_as_before(checkpoint):
    """What a checkpoint was when each head had a place of its own in the method."""
    former = {"heads.projector.": "training_head.", "heads.": ""}
    state = json.loads((checkpoint / "state.json").read_text())
    for file in ("model", "optimizer"):
        path = checkpoint / f"{file}.safetensors"
        tensors = load_file(path)
        for name in list(tensors):
            old = next((old + name.removeprefix(new) for new, old in former.items() if name.startswith(new)), name)
            tensors[old] = tensors.pop(name)
        assert any(name.startswith("training_head.") for name in tensors)
        save_file(tensors, path)
        state["sha256"][path.name] = sha256_file(path)
    (checkpoint / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize("name", METHODS)
def test_trains_and_goes_on_to_the_same_bits_and_embeds_images(tmp_path, images, name):
    config = config_of(images, name)
    uninterrupted = train(config, out=tmp_path / "uninterrupted", show_progress=False)
    losses = [line["loss"] for line in uninterrupted.lines() if "loss" in line]
    assert len(losses) == 10
    assert np.isfinite(losses).all()
    stopped = tmp_path / "stopped"

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        step = Trainer._step
        patch.setattr(Trainer, "_step", lambda self, *given: stop() if given[1] == 5 else step(self, *given))
        with pytest.raises(KeyboardInterrupt):
            train(config, out=stopped, show_progress=False)
    former = shutil.copytree(stopped, tmp_path / "former")
    name_heads_as_before(list_checkpoints(former)[-1])
    for folder in (stopped, former):
        train(config, out=folder, resume=True, show_progress=False)
        for file in ("model", "heads"):
            ours, theirs = weights(tmp_path / "uninterrupted", file), weights(folder, file)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    encoder = load(stopped)
    assert encoder.modalities == {"image"}
    assert encoder.encode(Image.new("RGB", (20, 30))).shape == (16,)
    assert encoder.towers.heads.keys() == HEADS[name]
    assert "pipeline_tag: image-feature-extraction" in (stopped / "model" / "README.md").read_text()


class Waits(TorchDispatchMode):
    """Collects the operations for whose results a host would have to wait: numbers, and shapes that values decide."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim")

    def __init__(self, on_host):
        super().__init__()
        self.on_host, self.seen = {tensor.data_ptr() for tensor in on_host}, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        by_mask = function.overloadpacket._qualified_op_name == "aten::index" and any(
            of is not None and of.dtype == torch.bool for of in args[1]
        )
        waits = by_mask or function.overloadpacket.__name__ in self.NAMES
        if waits and args[0].data_ptr() not in self.on_host:
            ours = [frame for frame in traceback.extract_stack() if "/mmcl/" in frame.filename]
            self.seen.append(f"{ours[-1].filename}:{ours[-1].lineno} {function}")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", METHODS)
def test_a_step_waits_for_no_result_of_its_device(tmp_path, images, name):
    trainer = Trainer(Config.model_validate(config_of(images, name)), tmp_path, resume=False, show_progress=False)
    trainer.step._waits = False  # as on a GPU
    trainer.method.train()
    batches = list(itertools.islice(trainer._batches()[0], 3))
    for number, batch in enumerate(batches[:2]):  # after which queues and schedules have begun
        trainer.step([batch], Step(number, 99), 0.01)
    queues = [part for part in trainer.method.modules() if isinstance(part, MemoryQueue)]
    with Waits([counter for queue in queues for counter in (queue.pushed, queue.steps)]) as waits:
        trainer.step([batches[2]], Step(2, 99), 0.01)
    assert not waits.seen


def test_augmented_images_of_a_size_that_the_tower_cannot_read_are_told_before_the_first_step(tmp_path, images):
    config = config_of(images, "simclr", epochs=0.2)
    config["augmentation"]["size"] = 8
    train(config, out=tmp_path / "run")
    config["model"]["image"]["args"] = VIT | {"dynamic_img_size": False}
    with pytest.raises(MmclError, match=r"augmentation\.size: the image tower cannot read images of 8 pixels"):
        train(config, out=tmp_path / "fixed")


def test_a_metric_by_a_name_of_the_log_stops_at_the_first_logged_step(tmp_path, images, monkeypatch):
    monkeypatch.setattr(Simclr, "metrics", lambda self, outputs: {"loss": 0.0})
    with pytest.raises(MmclError, match=r"Simclr\.metrics: the log has a 'loss' already"):
        train(config_of(images, "simclr"), out=tmp_path / "run", show_progress=False)


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_learn_what_the_batch_learns(tmp_path, images, name):
    from mmcl.training.loop import Trainer

    found = []
    for micro_batch in (None, 3):
        config = load_config(config_of(images, name, micro_batch=micro_batch))
        trainer = Trainer(config, tmp_path / str(micro_batch), resume=False, show_progress=False)
        trainer.method.double().train()
        batches = trainer.feed.batches(0, 4)
        results = [trainer.step([batch], Step(number, 4), 1e-2) for number, batch in enumerate(batches)]
        found.append(([r.loss for r in results], [r.norm for r in results], trainer.method.state_dict()))
        trainer.metrics.close()
    for number in (0, 1):
        np.testing.assert_allclose(found[0][number], found[1][number], rtol=1e-6)
    for key, tensor in found[0][2].items():
        torch.testing.assert_close(found[1][2][key], tensor, rtol=1e-5, atol=1e-6, msg=key)


def test_a_run_starts_with_the_heads_of_a_model_that_fit(tmp_path, images, caplog):
    caplog.set_level("INFO", "mmcl")
    first = train(config_of(images, "byol", epochs=0.4), out=tmp_path / "first", show_progress=False)
    kept = weights(first.folder, "heads")
    config = config_of(images, "byol") | {"model": {"name": str(first.folder)}}
    method = build_method(load_config(config), tmp_path / "next")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in method.heads.state_dict().items())
    assert "starts with its projector and predictor" in caplog.text
    caplog.clear()
    other = config | {"method": METHODS["byol"] | {"predictor": SMALL | {"norm": "batch", "bias": False}}}
    method = build_method(load_config(other), tmp_path / "next")
    assert torch.equal(method.heads["projector"][1].weight, kept["projector.1.weight"])
    assert "the predictor of the model to start from is 8 → 16 (no bias, layer, relu) → 8, and " in caplog.text
    assert "the one to train 8 → 16 (no bias, batch, relu) → 8 (no bias), with new weights" in caplog.text
    assert "starts with its projector\n" in caplog.text
    caplog.clear()
    simclr = config | {"method": METHODS["simclr"]}
    assert list(build_method(load_config(simclr), tmp_path / "next").heads) == ["projector"]
    assert "has no use for its predictor" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_learn_what_one_learns(tmp_path, images, name):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_of(images, name)))
    launch(SCRIPT, path, tmp_path / "two")
    launch(SCRIPT, path, tmp_path / "one", processes=1)
    ours, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
    if METHODS[name]["projector"].get("norm") == "batch":
        # The head takes a shift of all features off again: what AdamW makes steps of is the rounding of no gradient.
        del ours["image.tower.net.norm.bias"]
    for key, tensor in ours.items():
        torch.testing.assert_close(theirs[key], tensor, rtol=1e-3, atol=1e-4, msg=key)
