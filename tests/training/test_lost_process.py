"""A process that ends, or does not answer, ends the others with one line that says how to go on."""

from __future__ import annotations

import json
import re
import signal
import time

import pytest

from mmcl.config.load import load_config, to_yaml

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


def test_a_process_that_never_joins_is_reported(tmp_path, endless_config):
    first, second = start(
        "-m", "mmcl", "train", endless_config, "--out", tmp_path / "run", "--set", "training.timeout=0.1", processes=2
    )
    second.kill()
    second.wait()
    _, stderr = first.communicate(timeout=STARTED)
    assert first.returncode == 2
    assert re.fullmatch(
        r"\S*: process 0 of 2: the others did not all join within training\.timeout, 0\.1 minutes.*\n", stderr
    )


def test_a_killed_process_ends_the_other_with_one_line(tmp_path, endless_config):
    run = tmp_path / "run"
    workers = start("-m", "mmcl", "train", endless_config, "--out", run, processes=2)
    survivor, killed = workers
    try:
        deadline = time.monotonic() + STARTED
        while not list(run.glob("checkpoints/step-*")) and time.monotonic() < deadline:
            assert survivor.poll() is None, survivor.stderr.read()
            time.sleep(0.1)
        killed.send_signal(signal.SIGKILL)
        _, stderr = survivor.communicate(timeout=NOTICED)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert survivor.returncode == 2
    usual = ("simcse on", "learned parameters", "the model can be exported", "step ")
    errors = [line for line in stderr.splitlines() if not line.startswith(usual)]
    assert len(errors) == 1, stderr
    assert errors[0].startswith("error: process 0 of 2 lost the connection to another one")
    newest = re.search(r"--resume, which goes on from (\S+)$", errors[0])
    assert newest is not None
    assert newest[1] == str(max(run.glob("checkpoints/step-*")))
