"""The configs of methods over images alone, on a few rows and with narrower towers of the same kind: two processes and
micro-batches learn what one pass learns, in float64, and a killed run goes on to the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmcl.config.load import load_config, to_yaml

from .processes import launch

CONFIGS = Path(__file__).parents[2] / "configs" / "cifar10"
NARROW = ["model.dim=64", "model.image.args={width: 8}"]
FROZEN = ["method.freeze_prototypes=2"]  # in the first two of four steps
NAMES = {"simclr": [], "moco": ["method.queue=24"], "byol": [], "swav": FROZEN, "dino": FROZEN}
RUNNING = ("running_mean", "running_var", "num_batches_tracked")
STEPS = 4
pytestmark = [pytest.mark.slow, pytest.mark.parametrize("name", NAMES)]
IN_FLOAT64 = """
import sys
import torch
from mmcl.training import loop, train

torch.set_num_threads(1)
wrapped = loop.parallel_method
loop.parallel_method = lambda method, *rest: wrapped(method.double(), *rest)
train(sys.argv[1], out=sys.argv[2], show_progress=False)
"""


def write_config(name, path, *changes):
    """The config on the 4,000 drawn shapes, 16 rows a step; its heads are as they are."""
    length = [f"training.epochs={STEPS / 250}", "training.batch_size=16", "training.save_every=2"]
    usual = ["training.log_every=1", "training.precision=float32", "training.device=cpu"]
    changes = ["data.train={source: 'sample:shapes', split: train}", *NARROW, *NAMES[name], *length, *usual, *changes]
    path.write_text(to_yaml(load_config(CONFIGS / f"{name}.yaml", changes)))
    return path


def learned(run):
    """Losses, norms of gradients, and every tensor of the last checkpoint."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [[line["loss"], line["grad_norm"]] for line in lines if "loss" in line]
    assert len(logged) == STEPS
    return torch.tensor(logged, dtype=torch.float64), load_file(
        run / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors"
    )


def test_two_processes_and_micro_batches_learn_what_one_pass_learns(tmp_path, name):
    # Statistics of a part of the batch are other ones. But those of MoCo are of groups, of which each process has some.
    grouped = name == "moco"
    frozen = [] if grouped else ["training.batch_norm=frozen"]
    config = write_config(name, tmp_path / "plain.yaml", *frozen)
    launch(IN_FLOAT64, config, tmp_path / "one", processes=1)
    launch(IN_FLOAT64, config, tmp_path / "two")
    if not grouped:
        parts = write_config(name, tmp_path / "parts.yaml", *frozen, "training.micro_batch=6")
        launch(IN_FLOAT64, parts, tmp_path / "parts", processes=1)
    logged, weights = learned(tmp_path / "one")
    assert any(tensor.dtype == torch.float64 for tensor in weights.values())
    for other in ("two",) if grouped else ("two", "parts"):
        also_logged, also = learned(tmp_path / other)
        # Crops are resampled in float32, by products whose rounding depends on how many there are at once.
        torch.testing.assert_close(also_logged, logged, rtol=1e-7, atol=0)
        assert also.keys() == weights.keys()
        for key, tensor in weights.items():
            if not (grouped and key.endswith(RUNNING)):  # each process has its own
                torch.testing.assert_close(also[key], tensor, rtol=1e-5, atol=1e-6, msg=f"{other}: {key}")


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, name):
    config = write_config(name, tmp_path / "config.yaml")

    def start(out, *options):
        command = [sys.executable, "-m", "mmcl", "train", config, "--out", tmp_path / out, *options]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen([str(word) for word in command], env=env, stderr=subprocess.PIPE, text=True)

    whole = start("whole")
    assert whole.wait(600) == 0, whole.stderr.read()
    killed, checkpoint = start("killed"), tmp_path / "killed" / "checkpoints" / "step-00000002"
    while not checkpoint.is_dir():
        assert killed.poll() is None, killed.stderr.read()
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model").exists()
    resumed = start("killed", "--resume")
    assert resumed.wait(600) == 0, resumed.stderr.read()
    (logged, weights), (also_logged, also) = (learned(tmp_path / out) for out in ("whole", "killed"))
    assert torch.equal(logged, also_logged)
    assert weights.keys() == also.keys()
    assert all(torch.equal(also[key], tensor) for key, tensor in weights.items())
