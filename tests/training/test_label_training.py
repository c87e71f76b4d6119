"""Labels as a modality: a method of another package learns from them, whatever kind of source they stand in."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmcl import train
from mmcl.config.load import load_config
from mmcl.config.methods import METHODS
from mmcl.data.batches.feed import open_feed
from mmcl.data.sources.tar.write import write_shards
from mmcl.methods import Step
from mmcl.runtime.errors import MmclError
from mmcl.training.build import build_method
from mmcl.training.loop import Trainer

from .processes import launch

CLASSES = ("cat", "dog", "0", "007")
VIT = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 16, "dynamic_img_size": True}
KINDS = ("table", "folder", "shards")
SCRIPT = """
import sys, json
from mmcl.training import train
train(json.load(open(sys.argv[1])), out=sys.argv[2])
"""


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory):
    """The method as an installed package registers it, here and in the processes started from here."""
    here = tmp_path_factory.mktemp("installed")
    info = here / "labelled-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: labelled\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mmcl.methods]\nlabelled = label_method:Labelled\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(here)
        patch.syspath_prepend(Path(__file__).parent)
        paths = (str(here), str(Path(__file__).parent), os.environ.get("PYTHONPATH"))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        METHODS.__dict__.pop("plugins", None)
        yield
    METHODS.__dict__.pop("plugins", None)
    METHODS._loaded.pop("labelled", None)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Forty images of four classes: as a table, in a folder a class, and as tar shards.

    Table and shards hold two more, without a label and with a blank one.
    """
    root = tmp_path_factory.mktemp("labels")
    random = np.random.default_rng(0)
    table, samples = [], []
    for number in range(42):
        name = CLASSES[number % 4] if number < 40 else None
        hue = 60 * (number % 4) * np.ones((16, 16, 1)) + random.integers(0, 70, (16, 16, 3))
        folder = root / "folder" / name if name else root
        folder.mkdir(exist_ok=True, parents=True)
        path = folder / f"{number:02d}.png"
        Image.fromarray(hue.astype(np.uint8)).save(path)
        label = {40: None, 41: "  "}.get(number, name)
        table.append({"id": f"{number:02d}", "image": str(path), "label": label})
        sample = {"__key__": f"{number:02d}", "png": path.read_bytes()}
        samples.append(sample if label is None else sample | {"cls": f"{label}\n"})
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    write_shards(samples, root / "shards", per_shard=11)
    return {"table": root / "rows.jsonl", "folder": root / "folder", "shards": root / "shards"}


def config_of(source, **training):
    return {
        "name": "labelled",
        "method": "labelled",
        "data": {"train": {"source": str(source)}, "image": {"size": 16}},
        "model": {"dim": 16, "image": {"name": "timm:vit_tiny_patch16_224", "args": VIT, "head": {"kind": "none"}}},
        "augmentation": {"crop_scale": [0.4, 1.0], "flip": 0.5, "brightness": 0.3},
        "training": {
            "epochs": 2, "batch_size": 8, "lr": 1e-3, "log_every": 1, "save_every": 3, "precision": "float32",
            "device": "cpu", **training,
        },
    }  # fmt: skip


def feed_of(config, folder, *overrides):
    config = load_config(config, overrides)
    method, cpu = build_method(config, folder), torch.device("cpu")
    return open_feed([config.data.train], method.reading, config, None, augmented=True, device=cpu)


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def test_the_same_label_has_the_same_code_in_every_source_and_epoch_and_others_have_others(tmp_path, sources):
    codes = {}
    for kind in KINDS:
        feed, found = feed_of(config_of(sources[kind]), tmp_path), {}
        for batch in feed.batches(0, 10):
            labels = batch.inputs["label"]["labels"]
            assert labels.dtype == torch.int64
            for name, label in zip(feed.names(batch), labels.tolist(), strict=True):
                number = int(Path(name.split(":")[-1]).stem)
                assert found.setdefault(number, label) == label
        codes[kind] = found
    assert codes["table"] == codes["folder"] == codes["shards"]
    assert codes["table"].keys() == set(range(40))
    of_class = [{code for number, code in codes["table"].items() if number % 4 == n} for n in range(4)]
    assert [len(found) for found in of_class] == [1] * 4
    assert len(set.union(*of_class)) == 4


def test_integers_are_labels_however_they_are_written_and_others_are_none(tmp_path, sources):
    rows = [json.loads(line) for line in sources["table"].read_text().splitlines()[:24]]
    codes = []
    for label in (lambda n: n % 3, lambda n: str(n % 3), lambda n: None if n == 23 else float(n % 3)):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row | {"label": label(n)}) + "\n" for n, row in enumerate(rows)))
        column = feed_of(config_of(path), tmp_path).columns["label"]
        codes.append(column.values[:23].tolist())
        assert column.problems == ({23: "no label"} if label(23) is None else {})
    assert codes[0] == codes[1] == codes[2]
    for odd, listed in ((0.5, "float"), ([1], "list")):
        path.write_text("".join(json.dumps(row | {"label": odd}) + "\n" for row in rows))
        with pytest.raises(MmclError, match=f"column 'label' holds {listed}, where labels are text or whole numbers"):
            feed_of(config_of(path), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_method_learns_from_labels_and_goes_on_to_the_same_bits(tmp_path, sources, kind, train_until):
    config = config_of(sources[kind])
    uninterrupted = train(config, out=tmp_path / "uninterrupted", show_progress=False)
    losses = [line["loss"] for line in uninterrupted.lines() if "loss" in line]
    assert len(losses) == 10
    assert np.mean(losses[-3:]) < losses[0]
    skipped = uninterrupted.folder / "skipped.jsonl"
    listed = [json.loads(line) for line in skipped.read_text().splitlines()] if skipped.exists() else []
    assert [line["role"] for line in listed] == ([] if kind == "folder" else ["label", "label"])
    assert uninterrupted.card["data"]["skipped"] == len(listed)
    if kind == "table":
        assert [(line["id"], line["reason"]) for line in listed] == [("40", "no label"), ("41", "no label")]
    train_until(5, config, tmp_path / "cut")
    train(config, out=tmp_path / "cut", resume=True, show_progress=False)
    ours, theirs = weights(tmp_path / "uninterrupted"), weights(tmp_path / "cut")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_row_without_a_label_ends_a_run_that_is_to_fail(tmp_path, sources):
    with pytest.raises(MmclError, match=r"row 40 has no label in column 'label' \(2 rows in all\); fill it, or set"):
        feed_of(config_of(sources["table"]), tmp_path, "data.on_error=fail")
    feed = feed_of(config_of(sources["shards"]), tmp_path, "data.on_error=fail")
    with pytest.raises(MmclError, match=r"label: no (label|cls;label\.txt;json\.label; the sample has png)"):
        list(feed.batches(0, 6))


@pytest.mark.parametrize("kind", ["table", "shards"])
def test_micro_batches_learn_what_the_batch_learns(tmp_path, sources, kind):
    found = []
    for micro_batch in (None, 3):
        config = load_config(config_of(sources[kind], micro_batch=micro_batch))
        trainer = Trainer(config, tmp_path / str(micro_batch), resume=False, show_progress=False)
        trainer.method.double().train()
        batches = trainer.feed.batches(0, 4)
        results = [trainer.step([batch], Step(number, 4), 1e-2) for number, batch in enumerate(batches)]
        found.append(([r.loss for r in results], trainer.method.state_dict()))
        trainer.metrics.close()
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)
    for key, tensor in found[0][1].items():
        torch.testing.assert_close(found[1][1][key], tensor, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["table", "folder"])
def test_two_processes_learn_what_one_learns(tmp_path, sources, kind):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_of(sources[kind])))
    launch(SCRIPT, path, tmp_path / "two")
    launch(SCRIPT, path, tmp_path / "one", processes=1)
    ours, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key, tensor in ours.items():
        torch.testing.assert_close(theirs[key], tensor, rtol=1e-3, atol=1e-4, msg=key)
