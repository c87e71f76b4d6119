"""The tensors of a TorchScript archive, such as OpenAI's CLIP models are, read without its code.

``torch.jit.load`` compiles and runs what an archive holds, and its ``__setstate__`` can write files. The weights need
none of that: the archive's ``data.pkl`` is a tree of modules, and its leaves say where in which storage a tensor lies.
"""

from __future__ import annotations

import pickle
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_MOST_NAMES = 1_000_000  # a module that refers to itself would have names for ever


def is_torchscript(path: Path) -> bool:
    """Whether ``path`` is such an archive, by what torch tells them by."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters, buffers and plain tensors of its modules by name, on the CPU: the first two are those of
    ``torch.jit.load(path).state_dict()``.

    Raises:
        pickle.UnpicklingError: the archive holds something else than modules, tensors and plain values.
        ValueError, KeyError, RuntimeError, zipfile.BadZipFile: it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        storages = _Storages(archive, pickled.removesuffix(".pkl"))
        order = f"{pickled.removesuffix('data.pkl')}byteorder"
        if order in archive.namelist() and archive.read(order).decode() != sys.byteorder:
            raise ValueError("written on a machine of the other byte order")
        with archive.open(pickled) as file:
            root = _Unpickler(file).load()
        return {name: storages.tensor(view) for name, view in _named(root)}


class _Module:
    """In the place of a module of any class: what it holds, by attribute."""

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class _Storage(NamedTuple):
    key: str
    dtype: torch.dtype
    length: int


class _View(NamedTuple):
    """A tensor that is not read yet."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _view(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> _View:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return _View(storage, offset, size, stride)


def _value(value: Any, *_: Any) -> Any:
    return value


_KNOWN: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("collections", "OrderedDict"): dict,
    ("torch.jit._pickle", "restore_type_tag"): _value,
    **{("torch.jit._pickle", f"build_{kind}list"): _value for kind in ("int", "double", "bool", "tensor")},
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Makes nothing but the classes of this file and plain values."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "__torch__":
            return _Module
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, length = pid
        if not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("a storage without a type")
        return _Storage(str(key), dtype, int(length))


class _Storages:
    """The storages of an archive, each read once, when the first tensor in it is asked for."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive, self._folder = archive, folder
        self._read: dict[str, Tensor] = {}

    def tensor(self, view: _View) -> Tensor:
        key = view.storage.key
        if key not in self._read:
            self._read[key] = self._bytes(key)
        bytes_ = self._read[key]
        if view.storage.length * view.storage.dtype.itemsize > len(bytes_):
            raise ValueError(f"its storage {key} is cut off")
        return bytes_.view(view.storage.dtype).as_strided(view.size, view.stride, view.offset)

    def _bytes(self, key: str) -> Tensor:
        entry = self._archive.getinfo(f"{self._folder}/{key}")
        if entry.compress_type != zipfile.ZIP_STORED:  # torch compresses none, and what is may be of any size
            raise ValueError(f"its storage {key} is compressed")
        if not entry.file_size:
            return torch.empty(0, dtype=torch.uint8)
        buffer = bytearray(entry.file_size)
        with self._archive.open(entry) as file:
            if file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
                raise ValueError(f"its storage {key} is cut off")
        return torch.frombuffer(buffer, dtype=torch.uint8)


def _named(root: Any) -> Iterator[tuple[str, _View]]:
    modules = [("", root)]
    count = 0
    while modules:
        prefix, module = modules.pop()
        for name, value in getattr(module, "state", {}).items():
            if (count := count + 1) > _MOST_NAMES:
                raise ValueError("its modules refer to each other")
            if isinstance(value, _View):
                yield f"{prefix}{name}", value
            elif isinstance(value, _Module):
                modules.append((f"{prefix}{name}.", value))
