"""Processes launched together, as torchrun launches them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

TRAIN = """
import sys
import torch
torch.set_num_threads(1)
from mmcl.training import train
train(sys.argv[1], out=sys.argv[2], resume="--resume" in sys.argv)
"""


def start(*command, processes):
    """Python with these arguments, as each of so many processes of a group, or alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = []
    for rank in range(processes):
        where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        env = os.environ | {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        env |= {name: str(value) for name, value in where.items()} if processes > 1 else {}
        arguments = [sys.executable, *map(str, command)]
        workers.append(subprocess.Popen(arguments, env=env, stderr=subprocess.PIPE, text=True))
    return workers


def run_all(script, *arguments, processes):
    """Exit code and stderr of each process that runs ``script``."""
    workers = start("-c", script, *arguments, processes=processes)
    errors = [worker.communicate(timeout=300)[1] for worker in workers]
    return [(worker.returncode, text) for worker, text in zip(workers, errors, strict=True)]


def launch(script, *arguments, processes=2):
    """Run ``script`` in a group of processes; what any of them says of an error fails the test."""
    done = run_all(script, *arguments, processes=processes)
    assert [code for code, _ in done] == [0] * processes, "\n".join(errors for _, errors in done)
