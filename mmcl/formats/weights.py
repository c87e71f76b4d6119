"""Tensors in safetensors files: nothing is ever unpickled."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmcl.formats.tensor_files import read_tensors
from mmcl.runtime.errors import MmclError
from mmcl.runtime.full_disk import full_disk_is_oserror


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors. Raises ``OSError`` if the disk is full."""
    with full_disk_is_oserror(path):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    pass_on(path)


def pass_on(path: Path) -> None:
    """Safetensors makes files that only their owner can read; a model folder is meant to be passed on."""
    path.chmod(path.parent.stat().st_mode & 0o666)


def save_weights(module: nn.Module, path: Path) -> None:
    """Write the state of ``module``, each weight once. Raises ``OSError`` if the disk is full."""
    tied = tied_names(module)
    save_tensors(path, {name: tensor for name, tensor in module.state_dict().items() if name not in tied})


def tied_names(module: nn.Module) -> dict[str, str]:
    """Names under which the state of ``module`` has a parameter again, as T5's table of embeddings is there twice, each
    with the first name of the same: a file of tensors holds it once."""
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every if first[id(parameter)] != name}


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill ``module`` from a file that holds exactly its state, as :func:`save_weights` writes it.

    Raises:
        MmclError: the file is missing, damaged, or of another architecture.
    """
    tensors, tied = read_tensors(path), tied_names(module)
    try:
        module.load_state_dict(tensors | {name: tensors[first] for name, first in tied.items() if first in tensors})
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
