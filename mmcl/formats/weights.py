"""Tensors in safetensors files: nothing is ever unpickled."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmcl.formats.tensor_files import read_tensors
from mmcl.runtime.errors import MmclError


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors. Raises ``OSError`` if the disk is full."""
    with full_disk_is_oserror(path):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    pass_on(path)


def pass_on(path: Path) -> None:
    """Safetensors makes files that only their owner can read; a model folder is meant to be passed on."""
    path.chmod(path.parent.stat().st_mode & 0o666)


@contextmanager
def full_disk_is_oserror(path: Path) -> Iterator[None]:
    """Libraries written in Rust and C++ report what the system refuses, a full disk above all, as exceptions of their
    own, known by their text alone."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        found = re.search(r"os error (\d+)|[Ee]rrno (\d+)", str(error))
        code = int(found[1] or found[2]) if found else errno.ENOSPC
        if found is None and os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise OSError(code, os.strerror(code), str(path)) from None


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
