"""Hard negatives mined in a run that is resumed, fails, or has several processes."""

from __future__ import annotations

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file

from mmcl.config.load import load_config, to_yaml
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError
from mmcl.training.callbacks.mining import Miner
from mmcl.training.logs import MetricsLog
from mmcl.training.loop import Trainer

from ..processes import TRAIN, launch
from .mined import files_of, run_of


@pytest.mark.parametrize("last", [4, 5, 6])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, config, last):
    """Cut between two minings, just before one, and just after one."""
    changes = ["model.text.dropout=0.2", "data.mining.choice=random", "text_augmentation.drop=0.2"]
    uninterrupted = run_of(config, tmp_path / "uninterrupted", *changes)
    shutil.copytree(uninterrupted.folder, tmp_path / "cut")
    for checkpoint in (tmp_path / "cut" / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > last:
            shutil.rmtree(checkpoint)
    resumed = run_of(config, tmp_path / "cut", *changes, resume=True)
    assert files_of(resumed.folder) == files_of(uninterrupted.folder)
    weights = [load_file(run.folder / "model" / "model.safetensors") for run in (uninterrupted, resumed)]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_a_finished_run_that_is_resumed_mines_nothing_more(tmp_path, config):
    """It would be due before step 8, which there is not."""
    run = run_of(config, tmp_path / "run")
    files = files_of(run.folder)
    run_of(config, run.folder, resume=True)
    assert list(files) == [2, 5]
    assert files_of(run.folder) == files


@pytest.mark.parametrize("start", [0, 1])
def test_the_time_of_a_run_has_that_of_its_minings(tmp_path, config, monkeypatch, start):
    refresh = Miner.refresh
    monkeypatch.setattr(Miner, "refresh", lambda self, step: time.sleep(2.0) or refresh(self, step))
    run = run_of(config, tmp_path / "run", f"data.mining.start={start}", "data.mining.every=null", "training.epochs=1")
    state = json.loads((run.folder / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert state["seconds"] > 2.0


def test_processes_wait_at_a_barrier_for_the_one_that_writes(tmp_path, config, monkeypatch):
    """Any other exchange ends after training.timeout, and a file of many rows takes its time."""
    trainer = Trainer(load_config(config), tmp_path / "run", resume=False, show_progress=False)
    write, calls = Miner._write, []
    monkeypatch.setattr(Miner, "_write", lambda self, *args: calls.append("write") or write(self, *args))
    monkeypatch.setattr(distributed, "barrier", lambda: calls.append("barrier"))
    trainer.miner.refresh(2)
    trainer.metrics.close()
    assert calls == ["write", "barrier"]


def test_what_is_open_is_closed_where_the_first_mining_fails(tmp_path, config, monkeypatch):
    closed = []
    close = MetricsLog.close
    monkeypatch.setattr(MetricsLog, "close", lambda self: closed.append(True) or close(self))
    monkeypatch.setattr(Miner, "refresh", lambda self, step: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_of(config, tmp_path / "run", "data.mining.start=0")
    assert closed


def test_what_a_killed_run_left_is_removed(tmp_path, config):
    run = run_of(config, tmp_path / "run")
    (run.folder / "mined" / ".step-00000008.parquet.7.part").write_text("")
    (run.folder / "checkpoints" / ".step-00000008.part").mkdir()
    run_of(config, run.folder, resume=True)
    assert not list(run.folder.glob("*/.*"))
    shutil.rmtree(run.folder / "checkpoints")  # as if nothing had been learned yet: the folder is taken over
    (run.folder / "metrics.jsonl").unlink()
    run_of(config, run.folder, "data.mining=null", "training.epochs=0.5")
    assert not (run.folder / "mined").exists()


def test_a_run_is_not_resumed_without_what_was_mined(tmp_path, config):
    run = run_of(config, tmp_path / "run")
    for checkpoint in run.folder.glob("checkpoints/*"):
        if checkpoint.name > "step-00000006":
            shutil.rmtree(checkpoint)
    path = run.folder / "mined" / "step-00000005.parquet"
    written = path.read_bytes()
    middle = slice(len(written) // 8, len(written) // 2)
    for content in (
        written[: middle.start] + bytes(byte ^ 85 for byte in written[middle]) + written[middle.stop :],
        b"",
        None,
    ):
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        with pytest.raises(MmclError, match=r"step-00000005\.parquet: the negatives .* missing or damaged .*--out$"):
            run_of(config, run.folder, resume=True)


@pytest.mark.slow
def test_two_processes_mine_and_learn_what_one_does(tmp_path, config):
    path = tmp_path / "config.yaml"
    path.write_text(
        to_yaml(load_config(config, ["model.text.dropout=0", "data.mining.choice=random", "data.mining.start=0"]))
    )
    run_of(load_config(path), tmp_path / "1")
    launch(TRAIN, path, tmp_path / "2")
    one, two = (files_of(tmp_path / name) for name in "12")
    assert list(one) == list(two) == [0, 3, 6]
    for step, lines in one.items():
        columns = ["row", "positive_score"] + ([] if step else ["anchor", "negative", "item", "score", "rank"])
        for alone, shared in zip(lines, two[step], strict=True):  # after some steps near ties may fall either way
            for column in columns:
                assert shared[column] == pytest.approx(alone[column], abs=1e-3), column
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in "12"]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4)
