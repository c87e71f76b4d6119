"""A process that ends, or does not answer, ends the others with one line that says how to go on."""

from __future__ import annotations

import json
import re
import signal
import time

import pytest

from mmcl.config.load import load_config, to_yaml
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError

from .processes import start

STARTED = 120  # seconds, at most, on a busy machine
NOTICED = 60


@pytest.fixture
def endless_config(tmp_path):
    """Tiny, and with far more steps than there is time for."""
    rows = [
        {"anchor": f"{colour} {thing}", "positive": f"a {thing}"} for colour in ("red", "old") for thing in "abcdef"
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tower = {"name": "scratch", "layers": 1, "width": 16, "heads": 2, "dropout": 0, "tokenizer": {"vocab_size": 40}}
    config = {
        "method": "simcse",
        "data": {
            "train": {"source": str(tmp_path / "rows.jsonl")},
            "columns": {"anchor": "anchor", "positive": "positive"},
        },
        "model": {"dim": 16, "text": tower},
        "training": {"epochs": 1e6, "batch_size": 4, "log_every": 1, "save_every": 5},
    }
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(load_config(config)))
    return path


def test_a_process_that_never_came_is_told(tmp_path, endless_config):
    first, second = start(
        "-m", "mmcl", "train", endless_config, "--out", tmp_path / "run", "--set", "training.timeout=0.1", processes=2
    )
    second.kill()
    second.wait()
    _, told = first.communicate(timeout=STARTED)
    assert first.returncode == 2
    assert re.fullmatch(
        r"\S*: process 0 of 2: the others did not all join within training\.timeout, 0\.1 minutes.*\n", told
    )


def test_a_killed_process_ends_the_other_with_one_line(tmp_path, endless_config):
    run = tmp_path / "run"
    workers = start("-m", "mmcl", "train", endless_config, "--out", run, processes=2)
    staying, killed = workers
    try:
        deadline = time.monotonic() + STARTED
        while not list(run.glob("checkpoints/step-*")) and time.monotonic() < deadline:
            assert staying.poll() is None, staying.stderr.read()
            time.sleep(0.1)
        killed.send_signal(signal.SIGKILL)
        _, told = staying.communicate(timeout=NOTICED)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert staying.returncode == 2
    usual = ("simcse on", "learned parameters", "the model can be exported", "step ")
    errors = [line for line in told.splitlines() if not line.startswith(usual)]
    assert len(errors) == 1, told
    assert errors[0].startswith("error: process 0 of 2 lost the connection to another one")
    newest = re.search(r"--resume, which goes on from (\S+)$", errors[0])
    assert newest is not None
    assert newest[1] == str(max(run.glob("checkpoints/step-*")))


def test_what_torch_says_of_a_silent_process_names_the_setting(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    silent = "[/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 20000ms for recv operation to complete"
    told = r"no answer in time.*training\.timeout.*; look there$"
    with pytest.raises(MmclError, match=told), distributed.translate_comm_errors(lambda: "look there"):
        raise RuntimeError(silent)


def test_other_errors_stay_what_they_are(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="shapes do not fit"), distributed.translate_comm_errors(lambda: ""):
        raise RuntimeError("shapes do not fit")
    monkeypatch.setattr(distributed, "world_size", lambda: 1)
    with pytest.raises(RuntimeError, match="gloo"), distributed.translate_comm_errors(lambda: ""):
        raise RuntimeError("[gloo/transport] of a group that is none of ours")
