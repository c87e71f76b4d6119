"""Two and four processes are one process with the same global batch, however they exchange and compute it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("exchange_cases.py")


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Number of processes to what they made of every case."""
    folder = tmp_path_factory.mktemp("exchange")
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, SCRIPT, folder], env=env, stderr=subprocess.PIPE, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return {processes: load_file(folder / f"{processes}.safetensors") for processes in (1, 2, 4)}


@pytest.mark.slow  # forty seconds; what the losses do across processes is tested beside them
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_learn_in_float64_what_one_learns(processes, learned):
    """Loss, its parts, the numbers in the log, gradients and the state after 20 steps; see exchange_cases.py."""
    compared = set()
    for key, got in learned[processes].items():
        method, way, what = key.split("/")
        torch.testing.assert_close(got, learned[1][f"{method}/dense/{what}"], rtol=1e-10, atol=1e-12, msg=key)
        compared.add(f"{method} {way}")
    assert compared >= {f"clip {way}" for way in ("dense", "tiled", "ring", "cached", "all")}
