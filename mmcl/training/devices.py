"""The device of a run's process, and the precision that all its processes compute in."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState

from mmcl.runtime import distributed
from mmcl.runtime.device import pick_device, ready_after_fork, resolve_precision
from mmcl.runtime.errors import MmclError
from mmcl.training.checkpoint import recorded_precision

log = logging.getLogger("mmcl")


def choose_precision(wanted: str, device: torch.device, checkpoints: Sequence[Path]) -> str:
    """The precision of the towers, in all processes, which call this together.

    ``auto`` is what the run began in if it is resumed from ``checkpoints``, so that it goes on in it on other machines;
    else bfloat16, where the devices of all processes multiply it natively.
    """
    if wanted != "auto":
        return wanted
    begun = recorded_precision(checkpoints[-1]) if checkpoints else ""
    here = resolve_precision(wanted, device)
    if distributed.all_reduce_max(float(here == "float32"), device):
        here = "float32"
    if begun and begun != here and distributed.rank() == 0:
        slow = f", which not every {device.type} here multiplies natively: it is slow" if begun == "bfloat16" else ""
        log.warning("resumed in %s, in which the run began%s", begun, slow)
    return begun or here


def start_device(name: str, timeout: timedelta) -> torch.device:
    """The device of this process, which joins the others' group if it was launched with them.

    Args:
        name: as ``training.device``.
        timeout: how long processes wait for each other's share of a computation; at a barrier they wait on.

    Raises:
        MmclError: there is no such device, an earlier run has joined the processes for another, or not all come.
    """
    device = pick_device(name)
    if device.type == "cpu":  # a launcher may well fork processes that use a GPU
        ready_after_fork(device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    try:
        here = PartialState(cpu=device.type == "cpu", timeout=timeout)
    except dist.DistError as error:
        raise MmclError(
            f"process {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}: the others did not all join within "
            f"training.timeout, {timeout.total_seconds() / 60:g} minutes; their own last lines say what keeps them"
        ) from error
    if here.num_processes == 1:  # what it says of the device is that of the first run in this process
        return device
    if here.device.type != device.type:
        raise MmclError(
            f"training.device: these processes were joined for {here.device.type}, not {device.type}; start others"
        )
    return here.device
