"""Tensors from files of other programs: safetensors, PyTorch's, TorchScript archives. No code of a file is ever run."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmcl.formats.torchscript import is_torchscript, read_torchscript
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import read_json, require_model_file

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
"""What transformers and sentence-transformers call the files of weights in a model's folder."""

_ZIP = b"PK\x03\x04"
_DEPTH = 4  # of mappings within mappings: a trainer's checkpoint has two
_MOST_REPEATED = 1 << 24  # elements of a tensor that are the same ones in memory: a small file may have any number
_PLAIN = [type(np.dtype(kind)) for kind in "?bhilqBHILQefdgFDSUMm"]  # numbers, text and times; no Python objects
# numpy 1 and 2 call the same function differently, and files of both are about.
_PLAIN_NUMPY: list[Any] = [
    np.ndarray,
    np.dtype,
    *_PLAIN,
    *(
        (makes, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name, makes in (("scalar", np.float64(0).__reduce__()[0]), ("_reconstruct", np.zeros(0).__reduce__()[0]))
    ),
]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that holds one state dict, on the CPU.

    Raises:
        MmclError: see :func:`read_groups`; or it holds several.
    """
    groups = read_groups(path)
    for name in ("state_dict", ""):
        if name in groups:
            return groups[name]
    if len(groups) == 1:
        return next(iter(groups.values()))
    what = "several sets of tensors: " + ", ".join(sorted(groups)) if groups else "no tensors"
    raise MmclError(f"{path}: holds {what}; save the model's state dict alone")


def read_groups(path: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of a file by the mapping that they lie in: ``""`` for the outermost one, ``state_dict`` for a mapping
    of that name in it, ``checkpoint.model`` for one in another. What is no tensor or plain number is not read.

    Raises:
        MmclError: the file is missing, cannot be read, is damaged, or holds Python objects.
    """
    if not path.exists():
        raise MmclError(f"{path}: the weights are missing; take a fresh copy of the model")
    require_model_file(path)
    try:
        if is_safetensors(path):
            return {"": load_file(path)}
        if is_torchscript(path):
            scripted = read_torchscript(path)
            _require_values(scripted, path)
            return {"": scripted}
        # An open file, since by the name alone torch would go by the suffix.
        with torch.serialization.safe_globals(_PLAIN_NUMPY), path.open("rb") as file:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from None
    except MmclError:
        raise
    except Exception as error:  # whatever the parsers of four formats meet in damaged bytes
        raise damaged(path, error) from None
    groups: dict[str, dict[str, Tensor]] = {}
    _collect(found, "", groups, set(), path)
    return groups


def require_readable_weights(folder: Path) -> None:
    """:func:`require_model_file` for each file of weights in a model's folder, before another library meets it.

    Raises:
        MmclError: there is none, or one of them cannot be read.
    """
    paths = [path for pattern in WEIGHT_FILES for path in sorted(folder.glob(pattern))]
    if not paths:
        raise MmclError(
            f"{folder}: the weights are missing (no {' or '.join(WEIGHT_FILES)}; those of TensorFlow, Flax and ONNX "
            "are not read); take a fresh copy of the model"
        )
    for path in paths:
        require_model_file(path)


def require_intact_weights(folder: Path) -> None:
    """Read each file of weights in a model's folder, and say what is wrong with the first that cannot be.

    Raises:
        MmclError: see :func:`read_groups`; or a part that its list names is missing.
    """
    for listed in sorted(folder.glob("*.index.json")):
        parts = read_json(listed).get("weight_map")
        if not isinstance(parts, dict):
            raise MmclError(f"{listed}: damaged (no weight_map); take a fresh copy")
        if missing := sorted({str(part) for part in parts.values() if not (folder / str(part)).is_file()}):
            raise MmclError(
                f"{folder / missing[0]}: the weights are missing, and {listed.name} names them; take a fresh copy"
            )
    for pattern in WEIGHT_FILES:
        for path in sorted(folder.glob(pattern)):
            read_groups(path)


def is_safetensors(path: Path) -> bool:
    """By its first bytes, the length of a JSON object and that object; or by its suffix, unless it is an archive."""
    with path.open("rb") as file:
        head = file.read(9)
    begins = head[8:] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32
    return begins or (path.suffix == ".safetensors" and not head.startswith(_ZIP))


def require_finite(tensors: Iterable[tuple[str, Tensor]], where: object) -> None:
    """Raise ``MmclError`` with the name of the first tensor that holds NaN or an infinity.

    Args:
        tensors: names and tensors.
        where: for the message.
    """
    for name, tensor in tensors:
        if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta:
            continue
        # One pass without a mask: only a sum that is not finite is looked into.
        if not bool(torch.isfinite(tensor.detach().float().sum())):
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                kinds = "values that are NaN or infinite"
                raise MmclError(f"{where}: its tensor '{name}' has {bad} {kinds}; take another copy of the model")


def damaged(path: Path, error: BaseException) -> MmclError:
    """What to say of a file that a library cannot read, without that library's advice."""
    with path.open("rb") as file:
        archive = file.read(4) == _ZIP
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    if isinstance(error, SafetensorError):
        reason = reason.removeprefix("Error while deserializing header: ")
    elif archive and "central directory" in reason:
        reason = "the end of its archive is missing: it was cut off"
    elif "weights_only" in reason:  # torch takes any file of zeros at the right place for an archive of its oldest kind
        reason = "not a file of PyTorch's, or one of its oldest format"
    elif isinstance(error, EOFError):
        reason = "it ends too early"
    return MmclError(f"{path}: the weights are damaged, or no weights at all ({reason}); take a fresh copy")


def _refused(path: Path, error: Exception) -> MmclError:
    """A pickle with more than tensors in it, or with none: torch's own message advises to run it all the same."""
    text = str(error)
    found = re.search(r"GLOBAL ([\w.]+)", text)
    if found is None and not re.search(r"unrecognized function|Can only (create|build)|allowlist", text):
        return damaged(path, ValueError("not a file of PyTorch's"))
    objects = f"Python objects ({found[1]})" if found else "Python objects"
    return MmclError(
        f"{path}: holds {objects} beside its tensors, and those are never unpickled; save its state dict alone, as a "
        ".safetensors file"
    )


def _collect(node: Any, name: str, groups: dict[str, dict[str, Tensor]], visited: set[int], path: Path) -> None:
    if id(node) in visited or name.count(".") >= _DEPTH:
        return
    visited.add(id(node))  # mappings that hold each other many times over are read once
    if isinstance(node, (list, tuple)) and any(isinstance(value, Mapping) for value in node):
        node = dict(enumerate(node))  # such as (state dict, epoch)
    if not isinstance(node, Mapping):
        return
    tensors = {str(key): tensor for key, value in node.items() if (tensor := _tensor(value)) is not None}
    _require_values(tensors, path)
    # Single numbers of numpy's alone are about the training; beside others they are weights, such as logit_scale.
    if any(tensor.ndim for tensor in tensors.values()) or any(isinstance(value, Tensor) for value in node.values()):
        groups[name] = tensors
    for key, value in node.items():
        _collect(value, f"{name}.{key}" if name else str(key), groups, visited, path)


def _require_values(tensors: Mapping[str, Tensor], path: Path) -> None:
    for key, tensor in tensors.items():
        if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
            raise MmclError(f"{path}: its tensor '{key}' is quantised, sparse or without values; save a plain one")
        if tensor.numel() > _MOST_REPEATED and tensor.nbytes > tensor.untyped_storage().nbytes():
            raise MmclError(f"{path}: its tensor '{key}' repeats few values {tensor.numel():,} times; save a plain one")


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        try:
            return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), copy=True))
        except TypeError:  # torch lacks the type
            return None
    return None
