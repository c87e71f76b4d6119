"""Run folders that somebody, or a failing disk, has damaged: what is unusable is left out and counted, or named."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from mmcl.runtime.errors import MmclError
from mmcl.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from mmcl.training.run import read_metrics
from mmcl.training.run_folder import SkippedList

SOUND = b'{"step": 10, "loss": 1.5, "evaluation": {"dev/hit@1": 0.5}}\n'


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"step": 5, "lo\n',
        b"5\n",
        b"null\n",
        b"[1, 2]\n",
        b'{"loss": 1.0}\n',
        b'{"step": "5", "loss": 1.0}\n',
        b'{"step": -1}\n',
        b'{"step": 1e999}\n',
        b'{"step": 5, "loss": [1]}\n',
        b'{"step": 5, "evaluation": 3}\n',
        b'{"step": 5, "evaluation": {"dev/hit@1": "x"}}\n',
        b"\xff\xfe\x00\n",
        b"[" * 100_000 + b"\n",
        b'{"step": ' + b"9" * 5000 + b"}\n",
    ],
)
def test_damaged_lines_of_metrics_are_left_out_and_counted(tmp_path, caplog, damaged):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(SOUND + damaged + SOUND)
    assert read_metrics(path) == [json.loads(SOUND)] * 2
    (message,) = caplog.messages
    assert "metrics.jsonl: 1 " in message


def test_a_last_line_that_a_crash_cut_short_is_left_out_without_a_word(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(SOUND + SOUND[:20])
    assert read_metrics(path) == [json.loads(SOUND)]
    path.write_bytes(b"")
    assert read_metrics(path) == []
    assert caplog.messages == []


def test_a_damaged_list_of_skipped_rows_is_read_as_far_as_it_goes(tmp_path):
    (tmp_path / "skipped.jsonl").write_bytes(
        b'{"source": ["x"], "id": {}}\n7\n{"source": "a", "id": "1", "role": "r"}\n'
    )
    skipped = SkippedList(tmp_path)
    assert skipped.count("a") == 1
    assert skipped.add("a", [{"id": "1", "role": "r", "reason": "y"}]) == 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    method = nn.Linear(2, 2)
    folder = tmp_path_factory.mktemp("run")
    return save_checkpoint(folder, method, torch.optim.SGD(method.parameters()), Progress(step=3, best=0.5), keep=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "x"},
        {"step": 1.5},
        {"step": 4},
        {"seconds": "long"},
        {"best": [1]},
        {"window": {"loss": 1}},
        {"window": [{"loss": "x"}]},
        {"scaler": 3},
        {"sha256": {"model.safetensors": 5}},
        {"sha256": [1]},
        {"format_version": "x"},
        {"format_version": 1e999},
        {"format_version": None},
        None,
        b"[1]",
        b"",
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_a_damaged_state_is_one_line_with_its_cure(checkpoint, changes):
    path = checkpoint / "state.json"
    sound = path.read_bytes()
    if isinstance(changes, dict):
        path.write_text(json.dumps(json.loads(sound) | changes))
    elif changes is None:
        path.write_text(json.dumps({"format_version": 2}))
    else:
        path.write_bytes(changes)
    try:
        with pytest.raises(MmclError, match=r"state\.json: damaged checkpoint .*; remove .*step-00000003 to resume"):
            load_checkpoint(checkpoint, nn.Linear(2, 2), None)
    finally:
        path.write_bytes(sound)


def test_a_sound_state_is_read_as_it_was_written(checkpoint):
    assert load_checkpoint(checkpoint, nn.Linear(2, 2), None) == Progress(step=3, best=0.5)
