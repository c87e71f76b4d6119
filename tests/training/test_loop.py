"""The loop: it learns, it can be killed, it stops when it diverges, and it says what it left out."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import mmcl
from mmcl.config.load import load_config, to_yaml
from mmcl.runtime.errors import DivergedError, MmclError
from mmcl.runtime.lock import exclusive
from mmcl.training import train
from mmcl.training.checkpoint import list_checkpoints

TRAIN = """
import sys, torch
torch.set_num_threads(1)
from mmcl.training import train
train(sys.argv[1], out=sys.argv[2], resume="--resume" in sys.argv)
"""


def start(config, out, *flags, **kwargs):
    command = [sys.executable, "-c", TRAIN, str(config), str(out), *flags]
    return subprocess.Popen(command, env=os.environ | {"TQDM_DISABLE": "1"}, **kwargs)


@pytest.fixture
def tiny(shapes_config):
    """Twelve steps with dropout, augmentation and running statistics: everything that resuming must restore."""
    settings = {"epochs": 0.2, "save_every": 3, "keep": 3}
    return shapes_config | {"training": shapes_config["training"] | settings, "evaluation": {}}


def test_training_learns_and_the_model_can_be_used(tmp_path, shapes_config):
    config = shapes_config | {"evaluation": shapes_config["evaluation"] | {"best": "dev/image_to_text/hit@10"}}
    run = train(config, out=tmp_path / "run", overrides=["training.epochs=1.2", "evaluation.every=0.6"])
    losses = [line["loss"] for line in run.lines() if "loss" in line]
    assert losses[-1] < losses[0] / 2
    assert run.metrics["dev/image_to_text/hit@10"] > 0.2  # chance is 10 of 400
    assert run.metrics["dev/image_to_text/hit@10"] == max(
        line["evaluation"]["dev/image_to_text/hit@10"] for line in run.lines() if "evaluation" in line
    )
    assert mmcl.load(run.folder).encode("a small red circle").shape == (64,)
    assert run.model.card["data"]["rows"] == 4000


def test_a_killed_run_resumed_equals_one_left_alone_bit_for_bit(tmp_path, tiny):
    config = tmp_path / "config.yaml"
    config.write_text(to_yaml(load_config(tiny)))
    start(config, tmp_path / "uninterrupted").wait(timeout=300)

    broken = tmp_path / "broken"
    killed_at = random.Random().randint(3, 10)  # a random step: any must do
    process = start(config, broken)
    while process.poll() is None and _last_step(broken) < killed_at:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (broken / "model").exists(), "the run ended before it could be killed"
    assert start(config, broken, "--resume").wait(timeout=300) == 0

    uninterrupted = load_file(tmp_path / "uninterrupted" / "model" / "model.safetensors")
    resumed = load_file(broken / "model" / "model.safetensors")
    assert uninterrupted.keys() == resumed.keys()
    assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted), f"killed at step {killed_at}"
    steps = [line["step"] for line in map(json.loads, (broken / "metrics.jsonl").read_text().splitlines())]
    assert steps == sorted(set(steps))


def _last_step(folder):
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return json.loads(lines[-1])["step"] if lines else 0


def test_only_the_newest_checkpoints_and_the_best_are_kept(tmp_path, tiny):
    train(tiny, out=tmp_path / "run", overrides=["training.keep=2"])
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-00000009", "step-00000012"]


def test_a_run_folder_is_never_overwritten(tmp_path, tiny):
    train(tiny, out=tmp_path / "run", overrides=["training.epochs=0.05"])
    with pytest.raises(MmclError, match="--resume"):
        train(tiny, out=tmp_path / "run")
    with pytest.raises(MmclError, match=r"'training\.batch_size' is not as in"):
        train(tiny, out=tmp_path / "run", overrides=["training.batch_size=32"], resume=True)
    with pytest.raises(MmclError, match="no run to resume"):
        train(tiny, out=tmp_path / "elsewhere", resume=True)


def test_a_second_training_in_one_folder_at_once_is_refused(tmp_path, tiny):
    with exclusive(tmp_path / "run", "training in"), pytest.raises(MmclError, match="is training in this folder"):
        train(tiny, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_may_be_fed_and_saved_otherwise_but_not_learn_otherwise(tmp_path, tiny):
    train(tiny, out=tmp_path / "run", show_progress=False)
    for change in ("data.workers=1", "data.prefetch=1", "training.save_every=7", "training.keep=3"):
        train(tiny, out=tmp_path / "run", overrides=[change], resume=True, show_progress=False)
    with pytest.raises(MmclError, match=r"'training\.lr' is not as in its config"):
        train(tiny, out=tmp_path / "run", overrides=["training.lr=0.5"], resume=True, show_progress=False)


def test_a_damaged_checkpoint_is_named_with_its_cure(tmp_path, tiny):
    overrides = ["training.epochs=0.1"]
    train(tiny, out=tmp_path / "run", overrides=overrides)
    weights = list_checkpoints(tmp_path / "run")[-1] / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(MmclError, match=r"model\.safetensors: damaged checkpoint.*remove .*step-"):
        train(tiny, out=tmp_path / "run", overrides=overrides, resume=True)


def test_divergence_stops_with_step_rows_and_last_good_checkpoint(tmp_path, tiny, monkeypatch):
    from mmcl.methods import Clip, Loss

    calls = []
    honest = Clip.loss

    def poisoned(self, outputs, step):
        calls.append(1)
        loss = honest(self, outputs, step)
        return Loss(loss.value * torch.nan) if len(calls) == 5 else loss

    monkeypatch.setattr(Clip, "loss", poisoned)
    with pytest.raises(DivergedError, match=r"became nan at step 5;.*step-00000003"):
        train(tiny, out=tmp_path / "run")
    report = json.loads((tmp_path / "run" / "diverged.json").read_text())
    assert report["step"] == 5
    assert len(report["rows"]) == 64


def test_accumulation_averages_gradients(tmp_path, tiny):
    """A batch accumulated with itself is the batch alone."""
    from mmcl.methods import Step
    from mmcl.training.loop import Trainer

    changes = ["model.text.dropout=0", "model.image.args.drop_path_rate=0", "augmentation={}"]
    results = []
    for copies in (1, 2):
        trainer = Trainer(load_config(tiny, changes), tmp_path / str(copies), resume=False, show_progress=False)
        trainer.method.train()
        (batch,) = trainer.feed.batches(0, 1)
        results.append(trainer.step([batch] * copies, Step(0, 1), 1e-3))
    assert results[1].loss == pytest.approx(results[0].loss, rel=1e-5)
    assert results[1].norm == pytest.approx(results[0].norm, rel=1e-4)


def test_accumulated_batches_are_one_step(tmp_path, tiny):
    run = train(tiny, out=tmp_path / "run", overrides=["training.accumulate=2", "training.log_every=1"])
    assert [line["step"] for line in run.lines()] == [1, 2, 3, 4, 5, 6]


def test_unreadable_images_are_skipped_counted_and_listed(tmp_path, tiny, caplog):
    folder = _folder_of_images(tmp_path)
    (folder / "3.png").write_bytes(b"not an image")
    dev = folder / "dev.csv"  # what judging skips is listed, but is no row of the training data
    dev.write_text("path,caption\n1.png,one\n2.png,two\nnowhere.png,three\n")
    config = tiny | {"data": {"train": {"source": str(folder / "pairs.csv")}, "image": {"size": 32}}}
    config["data"]["columns"] = {"image": "path", "text": "caption"}
    config["evaluation"] = {"sources": {"dev": {"source": str(dev)}}}
    run = train(config, out=tmp_path / "run", overrides=["training.batch_size=8"])
    skipped, judged = [json.loads(line) for line in (run.folder / "skipped.jsonl").read_text().splitlines()]
    assert skipped["id"] == "3"
    assert skipped["role"] == "image"
    assert judged["source"] == str(dev)
    assert run.model.card["data"] == {"rows": 19, "source": str(folder / "pairs.csv"), "skipped": 1}
    assert "samples skipped" not in caplog.text, "that is said of streams"
    with pytest.raises(MmclError, match=r"3\.png"):
        train(config, out=tmp_path / "strict", overrides=["training.batch_size=8", "data.on_error=fail"])


@pytest.mark.parametrize("rows", [1, 5])
def test_judging_takes_fewer_rows_than_a_batch(tmp_path, tiny, rows):
    folder = _folder_of_images(tmp_path)
    few = folder / "few.csv"
    few.write_text("".join((folder / "pairs.csv").read_text().splitlines(keepends=True)[: rows + 1]))
    config = tiny | {"data": {"train": {"source": str(folder / "pairs.csv")}, "image": {"size": 32}}}
    config["data"]["columns"] = {"image": "path", "text": "caption"}
    config["evaluation"] = {"sources": {"dev": {"source": str(few)}}}
    run = train(config, out=tmp_path / "run", overrides=["training.batch_size=8", "training.epochs=0.5"])
    assert run.metrics["dev/image_to_text/hit@5"] == 1


def test_a_batch_larger_than_the_data_is_refused(tmp_path, tiny):
    with pytest.raises(MmclError, match=r"4000 usable rows do not fill a batch of 5000"):
        train(tiny, out=tmp_path / "run", overrides=["training.batch_size=5000"])


def test_a_run_that_is_refused_leaves_what_was_there(tmp_path, tiny):
    too_large = ["training.batch_size=5000"]
    with pytest.raises(MmclError):
        train(tiny, out=tmp_path / "runs" / "mine" / "first", overrides=too_large)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs" / "other").mkdir(parents=True)
    with pytest.raises(MmclError):
        train(tiny, out=tmp_path / "runs" / "first", overrides=too_large)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]
    with pytest.raises(MmclError):
        train(tiny, out=tmp_path / "runs" / "other", overrides=too_large)
    assert (tmp_path / "runs" / "other").is_dir()


def test_a_refused_run_keeps_the_list_of_skipped_rows_that_it_reported(tmp_path, tiny, caplog):
    folder = _folder_of_images(tmp_path)
    (folder / "3.png").write_bytes(b"not an image")
    config = tiny | {"data": {"train": {"source": str(folder / "pairs.csv")}, "image": {"size": 32}}}
    config["data"]["columns"] = {"image": "path", "text": "caption"}
    config["evaluation"] = {"sources": {"dev": {"source": str(folder / "none.csv")}}}
    with pytest.raises(MmclError, match=r"none\.csv: no such file"):
        train(config, out=tmp_path / "run", overrides=["training.batch_size=8"])
    assert f"1 rows skipped, listed in {tmp_path / 'run' / 'skipped.jsonl'}" in caplog.text
    assert (tmp_path / "run" / "skipped.jsonl").is_file()


def test_rows_of_which_none_can_be_used_are_reported_in_one_line(tmp_path, tiny, caplog):
    folder = _folder_of_images(tmp_path)
    for image in folder.glob("*.png"):
        image.write_bytes(b"not an image")
    config = tiny | {"data": {"train": {"source": str(folder / "pairs.csv")}, "image": {"size": 32}}}
    config["data"]["columns"] = {"image": "path", "text": "caption"}
    with pytest.raises(MmclError, match=r"none of the \d+ rows can be used; row 0, image: "):
        train(config, out=tmp_path / "run", overrides=["training.batch_size=8"])
    assert not [record for record in caplog.records if record.name == "mmcl" and record.levelname == "WARNING"]
    assert not (tmp_path / "run").exists()


def test_frozen_towers_do_not_move_and_their_features_are_computed_once(tmp_path, tiny, monkeypatch):
    from mmcl.models.text.tower import TextTower

    texts = []
    forward = TextTower.forward

    def counting(self, input_ids, attention_mask):
        texts.append(len(input_ids))
        return forward(self, input_ids, attention_mask)

    monkeypatch.setattr(TextTower, "forward", counting)
    overrides = ["model.text.frozen=true", "evaluation.sources={}"]
    runs = [train(tiny, out=tmp_path / str(n), overrides=[*overrides, f"training.epochs={n}"]) for n in (0.05, 0.1)]
    tables = [load_file(run.folder / "model" / "model.safetensors") for run in runs]
    tower = [name for name in tables[0] if name.startswith("text.tower")]
    assert tower
    assert all(torch.equal(tables[0][name], tables[1][name]) for name in tower)
    assert not torch.equal(tables[0]["text.head.1.weight"], tables[1]["text.head.1.weight"])
    assert sum(texts) == 2 * 4000  # each distinct caption once a run, whatever its length


def _folder_of_images(tmp_path):
    import numpy as np
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = ["path,caption"]
    for number in range(20):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,image number {number}")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_the_rate_leaves_evaluations_out(tmp_path, shapes_config, monkeypatch):
    """Twelve steps with an evaluation of a second after each third one."""
    from mmcl.training.callbacks.evaluations import Evaluations

    begun = []

    def slow(evaluations, progress):
        begun.append(time.monotonic())
        time.sleep(1.0)
        return False

    monkeypatch.setattr(Evaluations, "_evaluate", slow)
    changed = ["training.epochs=0.2", "evaluation.every=0.05", "training.log_every=6", "training.save_every=100"]
    run = train(shapes_config, out=tmp_path / "run", overrides=changed)
    rates = [line["pairs_per_second"] for line in run.lines() if "pairs_per_second" in line]
    assert len(rates) == 2
    # From the evaluation after step 6 to that after step 12 there are six steps and two evaluations.
    assert run.config.training.batch_size * 6 / rates[1] < begun[3] - begun[1] - 1.5


def test_a_run_learns_on_the_device_it_is_reported_whatever_the_run_before_it_had(monkeypatch):
    from datetime import timedelta

    from mmcl.training import devices

    monkeypatch.setattr(devices, "pick_device", torch.device)
    for name in ("cpu", "cuda", "cpu"):
        assert devices.start_device(name, timedelta(minutes=1)) == torch.device(name)
