"""Whether a description of a network can be that of the weights beside it, before anything of its size is built."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmcl.formats.tensor_files import WEIGHT_FILES
from mmcl.models.text.limits import UNLIMITED
from mmcl.runtime.errors import MmclError

_MOST_LAYERS = 4096
_MOST = 1 << 24  # of any dimension, if the weights are smaller: contexts of ten million tokens are about
_LAYERS = re.compile(r"layers?$|layers?_num|depths?$|blocks|stages|repeats")
_COUNTS = re.compile(r"heads?$|hidden_size|vocab_size|width")  # others are -1 where they do not apply
_SIZES = re.compile(
    r"size|dim|width|hidden|embed|position|vocab|length|heads?$|features|channels|experts|tokens$|inner|buckets|inputs"
    r"|d_(model|ff|kv|inner)$|^n_|^num_"
)


def weights_bytes(folder: Path) -> int:
    """Bytes of all files of weights in a folder."""
    return sum(path.stat().st_size for pattern in WEIGHT_FILES for path in folder.glob(pattern))


def require_plausible(config: Any, most: int, where: object) -> None:
    """Look at the counts and dimensions that a description gives; it may be nested.

    Args:
        config: of a network, as JSON gives it.
        most: bytes of its weights: no dimension is larger.
        where: for the message.

    Raises:
        MmclError: one of them is absurd, and building it would never end or take all memory.
    """
    nodes: list[tuple[str, Any]] = [("", config)]
    while nodes:
        key, value = nodes.pop()
        if isinstance(value, dict):
            nodes += [(str(name), item) for name, item in value.items()]
        elif isinstance(value, (list, tuple)):
            nodes += [(key, item) for item in value]
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            layers = bool(_LAYERS.search(key))
            if key == "max_tokens" and value == UNLIMITED:
                continue
            limit = _MOST_LAYERS if layers else max(most, _MOST)
            negative = value < 0 and (layers or _COUNTS.search(key))
            if negative or ((layers or _SIZES.search(key)) and value > limit):
                raise MmclError(f"{where}: says {key} {value:.3g}, which cannot be of these weights; take a fresh copy")


def require_size(build: Callable[[], nn.Module], most: int, where: object) -> None:
    """Build a network without its memory, and compare what it would take with its file.

    Args:
        build: makes it; networks that cannot be built without memory are let pass.
        most: bytes of its weights, each of which takes one at least.
        where: for the message.

    Raises:
        MmclError: it has far more weights than the file can hold.
    """
    try:
        with torch.device("meta"):
            net = build()
    except Exception:  # reported where it is built in earnest
        return
    count = sum(parameter.numel() for parameter in net.parameters())
    if count > 2 * most + _MOST:
        raise MmclError(f"{where}: describes {count:.3g} weights, but the file has {most:.3g} bytes; take a fresh copy")
