"""Devices and precision."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import torch

from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")
_forked = False  # whether this process was forked and has not logged yet that it computes on one thread

Devices = str | int | torch.device | Sequence[str | torch.device]
"""A device, several of them (with repetitions), or a number of processes on the CPU."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Of floating-point precisions."""


def pick_device(name: str = "auto") -> torch.device:
    """The device called ``name``; ``auto`` is CUDA, else Apple's MPS, else the CPU.

    Raises:
        MmclError: this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise MmclError(f"device '{name}' is not known; use auto, cpu, cuda, cuda:0 or mps") from None
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(device.type, False):
        raise MmclError(f"device '{name}' is not on this machine; use 'auto' to take what there is")
    return device


def ready_after_fork(device: torch.device) -> None:
    """In a forked process, log once that it computes on one thread.

    Raises:
        MmclError: ``device`` is a GPU, which a forked process cannot use.
    """
    global _forked
    if not _forked:
        return
    if device.type != "cpu":
        raise MmclError(f"a forked process cannot compute on {device}; start it by multiprocessing's 'spawn' instead")
    log.warning("this process was forked: it computes on one thread; one started by 'spawn' has all of them")
    _forked = False


def _one_thread_after_fork() -> None:
    """A fork has none of OpenMP's threads, and its next parallel product would wait for them for ever."""
    global _forked
    torch.set_num_threads(1)
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_one_thread_after_fork)


def pick_devices(devices: Devices) -> list[torch.device]:
    """A device for each of several processes.

    Raises:
        MmclError: this machine lacks one of them, or the list is empty.
    """
    if isinstance(devices, int):
        devices = ["cpu"] * devices
    names = [devices] if isinstance(devices, str | torch.device) else list(devices)
    if not names:
        raise MmclError("devices: name a device, several, or give a number of processes from 1 up")
    return [pick_device(str(name)) for name in names]


def has_amx() -> bool:
    """Whether the CPU has AMX, which multiplies tiles of bfloat16 numbers and of 8-bit integers."""
    return torch.cpu._is_amx_tile_supported()


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has bfloat16 matrix products: CUDA from Ampere on, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (has_amx() or torch.cpu._is_avx512_bf16_supported())


def multiplies_int8(device: torch.device) -> bool:
    """Whether the hardware has products of 8-bit integers that this package uses: CPUs with AVX512-VNNI or AMX."""
    return device.type == "cpu" and (torch.cpu._is_vnni_supported() or has_amx())


def widest(device: torch.device) -> torch.dtype:
    """The widest float type of a device, for sums: float64, or float32 on Apple's MPS."""
    return torch.float32 if device.type == "mps" else torch.float64


def resolve_precision(precision: str, device: torch.device) -> str:
    """``bfloat16`` where it is native and ``float32`` elsewhere for ``auto``; any other precision as it is."""
    if precision != "auto":
        return precision
    return "bfloat16" if multiplies_bfloat16(device) else "float32"
