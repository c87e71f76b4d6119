"""The device of a run's process, and the precision that all its processes compute in."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Literal, cast

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import nn
from torch.nn.modules.conv import _ConvNd

from mmcl.config.training import Precision
from mmcl.methods import Method
from mmcl.methods.parts.momentum import MomentumCopy
from mmcl.models.embedder import Embedder
from mmcl.models.towers import Towers
from mmcl.runtime import distributed
from mmcl.runtime.device import has_amx, multiplies_bfloat16, pick_device, ready_after_fork
from mmcl.runtime.errors import MmclError
from mmcl.training.checkpoint import recorded_precision

log = logging.getLogger("mmcl")

NARROW = 128
"""Width below which a transformer stays in float32 with AMX. Both passes of 512 titles on one core of a Xeon, in
float32 and bfloat16: 137 and 86 ms with one layer of width 128, 505 and 271 with two of 192, 732 and 321 with two of
256. Narrower ones are not measured."""


def choose_precision(wanted: Precision, towers: Towers, device: torch.device, checkpoints: Sequence[Path]) -> Precision:
    """What the towers compute in, in all processes, which call this together: ``wanted``, but for ``auto``.

    ``auto`` is what a run of an older version began in, if it is resumed from ``checkpoints``; else bfloat16, where the
    devices of all processes multiply it natively, of each tower that gains by it. The rule knows the hardware and the
    weights' shapes alone, so that a run can be repeated.

    Raises:
        MmclError: it names other towers.
    """
    if isinstance(wanted, dict) and set(wanted) != set(towers.names):
        raise MmclError(
            f"training.precision: it names {', '.join(sorted(wanted))}, but the towers are {', '.join(towers.names)}; "
            "name each of them"
        )

    def anywhere(fact: bool) -> bool:
        return bool(distributed.all_reduce_max(float(fact), device))

    native = not anywhere(not multiplies_bfloat16(device))
    chosen = wanted
    if wanted == "auto" and checkpoints:
        chosen = cast(Precision, recorded_precision(checkpoints[-1])) or wanted
    if chosen == "auto":
        loses = {name: anywhere(too_narrow(towers.embedder(name), device)) or not native for name in towers.names}
        each: dict[str, Literal["float32", "bfloat16"]]
        each = {name: "float32" if of else "bfloat16" for name, of in loses.items()}
        chosen = each if len(set(each.values())) > 1 else next(iter(each.values()))
    if checkpoints and not native and outermost(chosen) == "bfloat16" and distributed.rank() == 0:
        log.warning(
            "resumed in bfloat16, in which the run began and which not every %s here multiplies natively: it is slow",
            device.type,
        )
    return chosen


def too_narrow(embedder: Embedder, device: torch.device) -> bool:
    """Whether a tower's products take longer in bfloat16 than in float32: on CPUs with AMX those of narrow transformers
    do."""
    if device.type != "cpu" or not has_amx():
        return False
    modules = list(embedder.tower.modules())
    convolved = sum(module.weight.numel() for module in modules if isinstance(module, _ConvNd))
    linear = [module.weight for module in modules if isinstance(module, nn.Linear)]
    if convolved > sum(weight.numel() for weight in linear) or not linear:
        return False
    return min(max(linear, key=torch.numel).shape) < NARROW


def outermost(precision: Precision) -> str:
    """What is computed in around the towers: bfloat16 if any of them is in it."""
    if isinstance(precision, str):
        return precision
    return "bfloat16" if "bfloat16" in precision.values() else "float32"


def describe_precision(precision: Precision) -> str:
    """Such as ``bfloat16``, or ``bfloat16 (text: float32)`` where towers differ."""
    outer = outermost(precision)
    others = [] if isinstance(precision, str) else [f"{name}: {of}" for name, of in precision.items() if of != outer]
    return f"{outer} ({', '.join(others)})" if others else outer


def set_precision(method: Method, precision: Precision) -> None:
    """Have the towers that are to compute in float32 do so, and their momentum copies, whatever is around them."""
    towers = method.encoder
    for name in towers.names:
        towers.embedder(name).in_float32 = isinstance(precision, dict) and precision[name] == "float32"
    for copy in [part for part in method.modules() if isinstance(part, MomentumCopy)]:
        for part, follower in copy.module_pairs():
            if isinstance(part, Embedder) and isinstance(follower, Embedder):
                follower.in_float32 = part.in_float32


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
