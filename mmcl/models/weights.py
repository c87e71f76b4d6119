"""Tensors in safetensors files: nothing is ever unpickled."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmcl.models.tensor_files import read_tensors
from mmcl.runtime.errors import MmclError


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors. Raises ``OSError`` if the disk is full."""
    with full_disk_is_oserror(path):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    # safetensors makes files that only their owner can read; a model folder is meant to be passed on.
    path.chmod(path.parent.stat().st_mode & 0o666)


@contextmanager
def full_disk_is_oserror(path: Path) -> Iterator[None]:
    """Libraries written in Rust report a full disk as an exception of their own, known by its text alone."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if "os error 28" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill ``module`` from a file that holds exactly its state.

    Raises:
        MmclError: the file is missing, damaged, or of another architecture.
    """
    tensors = read_tensors(path)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise MmclError(f"{path}: not the weights of the model that the folder describes: {reason}") from None


def weights_hash(module: nn.Module) -> str:
    """Hexadecimal SHA-256 of the names and values of a module's state; a device is no part of it, a dtype is."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
