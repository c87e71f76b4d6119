"""Siamese networks end to end, of images and of texts: cut off and resumed, in micro-batches, on two processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmcl import load, train
from mmcl.config.load import load_config
from mmcl.methods import Step
from mmcl.runtime.errors import MmclError
from mmcl.training.loop import Trainer

from .processes import launch
from .sentence_runs import ANIMALS, PLACES, SENTENCES, VERBS, write

VIT = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 16}
MODELS = {
    "image": {"dim": 16, "image": {"name": "timm:vit_tiny_patch16_224", "args": VIT, "head": {"kind": "none"}}},
    "text": {
        "dim": 16,
        "text": {
            "name": "scratch",
            "layers": 1,
            "width": 16,
            "heads": 2,
            "dropout": 0.0,
            "tokenizer": {"vocab_size": 80},
        },
    },
}
COLUMNS = {
    "labels": {},
    "pairs": {"first": "first", "second": "second", "same": "same"},
    "triplets": {"anchor": "first", "positive": "second", "negative": "third"},
}
CASES = [(modality, kind) for modality in MODELS for kind in COLUMNS]
SCRIPT = """
import sys, json
from mmcl.training import train
train(json.load(open(sys.argv[1])), out=sys.argv[2])
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Forty rows of images of four colours, and forty of sentences about four animals."""
    folder = tmp_path_factory.mktemp("siamese")
    random = np.random.default_rng(0)

    def image(label):
        path = folder / f"{len(list(folder.iterdir()))}.png"
        hue = 60 * label + random.integers(0, 70, (16, 16, 3))
        Image.fromarray(hue.astype(np.uint8)).save(path)
        return path.name

    def text(label):
        return f"a {ANIMALS[label]} {random.choice(VERBS)} {random.choice(PLACES)}"

    found = {}
    for modality, make in (("image", image), ("text", text)):
        rows = []
        for number in range(40):
            label, same = number % 4, number % 3 != 0
            rows.append({
                modality: make(label), "label": label, "first": make(label), "same": int(same),
                "second": make(label if same else (label + 1) % 4), "third": make((label + 2) % 4),
            })  # fmt: skip
        found[modality] = write(folder / f"{modality}.jsonl", rows)
    return found


def config_of(sources, modality, kind, **training):
    changes = (
        {"augmentation": {"crop_scale": [0.4, 1.0], "flip": 0.5, "brightness": 0.3}} if modality == "image" else {}
    )
    return changes | {
        "name": "siamese",
        "method": {"name": "siamese", "margin": 1.0},
        "data": {"train": {"source": sources[modality]}, "columns": COLUMNS[kind], "image": {"size": 16}},
        "model": MODELS[modality],
        "training": {
            "epochs": 4, "batch_size": 8, "lr": 1e-3, "log_every": 1, "save_every": 3, "precision": "float32",
            "device": "cpu", **training,
        },
    }  # fmt: skip


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize(("modality", "kind"), CASES)
def test_learns_and_goes_on_to_the_same_bits_and_embeds(tmp_path, sources, modality, kind, train_until):
    config = config_of(sources, modality, kind)
    uninterrupted = train(config, out=tmp_path / "uninterrupted", show_progress=False)
    losses = [line["loss"] for line in uninterrupted.lines() if "loss" in line]
    assert len(losses) == 20
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    train_until(5, config, tmp_path / "cut")
    train(config, out=tmp_path / "cut", resume=True, show_progress=False)
    ours, theirs = weights(tmp_path / "uninterrupted"), weights(tmp_path / "cut")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    encoder = load(tmp_path / "cut")
    assert encoder.modalities == {modality}
    item = Image.new("RGB", (20, 30)) if modality == "image" else SENTENCES[0]
    assert encoder.encode(item).shape == (16,)


@pytest.mark.parametrize(("modality", "kind"), CASES)
def test_micro_batches_learn_what_the_batch_learns(tmp_path, sources, modality, kind):
    found = []
    for micro_batch in (None, 3):
        config = load_config(config_of(sources, modality, kind, micro_batch=micro_batch))
        trainer = Trainer(config, tmp_path / str(micro_batch), resume=False, show_progress=False)
        trainer.method.double().train()
        batches = trainer.feed.batches(0, 3)
        results = [trainer.step([batch], Step(number, 3), 1e-2) for number, batch in enumerate(batches)]
        found.append(([[r.loss, r.norm] for r in results], trainer.method.state_dict()))
        trainer.metrics.close()
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)
    for key, tensor in found[0][1].items():
        torch.testing.assert_close(found[1][1][key], tensor, rtol=1e-5, atol=1e-6, msg=key)


def test_starts_from_a_model_of_either_modality(tmp_path, sources):
    for modality in MODELS:
        first = train(config_of(sources, modality, "labels", epochs=0.2), out=tmp_path / modality, show_progress=False)
        config = config_of(sources, modality, "triplets", epochs=0.2) | {"model": {"name": str(first.folder)}}
        config["method"] = {"name": "siamese", "modality": modality}
        run = train(config, out=tmp_path / f"{modality}-next", show_progress=False)
        assert load(run.folder).modalities == {modality}


@pytest.mark.parametrize(
    ("same", "words"),
    [
        ([2, 0, 1] * 3, r"data.columns.same: there are numbers from \d to 2; give 1 for pairs of the same"),
        (["yes"] * 9, r"none of the 9 rows can be used; row 0, same: no number"),
    ],
)
def test_pairs_need_ones_and_zeros(tmp_path, sources, same, words):
    rows = [json.loads(line) for line in Path(sources["text"]).read_text().splitlines()[:9]]
    source = write(tmp_path / "rows.jsonl", [row | {"same": of} for row, of in zip(rows, same, strict=True)])
    with pytest.raises(MmclError, match=words):
        train(config_of({"text": source}, "text", "pairs"), out=tmp_path / "run", show_progress=False)


def test_labels_that_are_all_the_same_or_missing_end_in_one_line(tmp_path, sources):
    rows = [json.loads(line) for line in Path(sources["text"]).read_text().splitlines()[:9]]
    for label, words in ((7, "all 9 rows have one and the same label"), (None, "row 0, label: no label")):
        source = write(tmp_path / f"{label}.jsonl", [row | {"label": label} for row in rows])
        with pytest.raises(MmclError, match=words):
            train(config_of({"text": source}, "text", "labels"), out=tmp_path / str(label), show_progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(("modality", "kind"), [("image", "labels"), ("image", "pairs"), ("text", "triplets")])
def test_two_processes_learn_what_one_learns(tmp_path, sources, modality, kind):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_of(sources, modality, kind)))
    launch(SCRIPT, path, tmp_path / "two")
    launch(SCRIPT, path, tmp_path / "one", processes=1)
    ours, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key, tensor in ours.items():
        torch.testing.assert_close(theirs[key], tensor, rtol=1e-3, atol=1e-4, msg=key)
