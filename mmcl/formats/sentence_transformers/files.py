"""Files in the folder of one module of sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmcl.formats.tensor_files import read_tensors
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import read_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """The settings of a module that computes nothing known without them.

    Raises:
        MmclError: they are missing or damaged.
    """
    if not (folder / name).is_file():
        raise MmclError(f"{folder / name}: is missing, but modules.json lists its folder; take a fresh copy")
    return read_json(folder / name)


def read_optional(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty without it, for nearly all of these files are optional."""
    return read_json(path) if path.is_file() else {}


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a module: safetensors, or in old folders a pickle that may hold tensors alone.

    Raises:
        MmclError: they are missing or damaged.
    """
    path = next((folder / name for name in (WEIGHTS, "pytorch_model.bin") if (folder / name).is_file()), None)
    if path is None:
        raise MmclError(f"{folder}: the weights are missing; take a fresh copy of the model")
    return read_tensors(path)


def fill(module: nn.Module, folder: Path) -> None:
    """Give ``module`` the weights in ``folder``.

    Raises:
        MmclError: they are missing, damaged, or of other widths.
    """
    state = read_weights(folder)
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != expected:
        raise MmclError(f"{folder}: holds {_shapes(found)}, but its config describes {_shapes(expected)}")
    module.load_state_dict(state)


def _shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in sorted(shapes.items())) or "nothing"
