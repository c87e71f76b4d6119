"""The heads of a method in a model folder: beside the encoder, described so that they can be rebuilt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mmcl.formats.weights import load_weights, save_tensors
from mmcl.models.heads import Head, Prototypes

HEADS = "heads.safetensors"
FORMER_HEAD = "training_head.safetensors"  # of format 3 and 4, which knew one head: the projector


def save_heads(heads: Mapping[str, Head | Prototypes], folder: Path) -> dict[str, dict[str, Any]]:
    """Write the weights of all heads; returns name to description, the ``heads`` of a model folder's."""
    if heads:
        save_tensors(folder / HEADS, nn.ModuleDict(heads).state_dict())
    return {name: {"width": head.width, "dim": head.dim, **head.spec()} for name, head in heads.items()}


def build_heads(description: Mapping[str, Any]) -> dict[str, Head | Prototypes]:
    """The heads that a model folder's description names, with fresh weights."""
    return {name: _build(**spec) for name, spec in _described(description).items()}


def read_heads(heads: Mapping[str, Head | Prototypes], description: Mapping[str, Any], folder: Path) -> None:
    """Fill heads with the weights in a folder.

    Raises:
        MmclError: they are missing, damaged, or of another architecture.
    """
    if heads and "heads" not in description:
        load_weights(heads["projector"], folder / FORMER_HEAD)
    elif heads:
        load_weights(nn.ModuleDict(heads), folder / HEADS)


def _described(description: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    if head := description.get("training_head"):
        return {"projector": {"width": description["dim"], **head}}
    return description.get("heads", {})


def _build(width: int, dim: int, **spec: Any) -> Head | Prototypes:
    if spec.get("kind") == "prototypes":
        return Prototypes(width, dim)
    return Head.from_spec(spec, width, dim)
