"""Checks of what a method returns: each error names the class, what is wrong and what to return instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from mmcl.methods.base import Loss, Method
from mmcl.methods.outputs import Outputs
from mmcl.runtime.errors import MmclError

RESERVED = frozenset(
    ("step", "epoch", "loss", "lr", "grad_norm", "pairs_per_second", "time", "start", "evaluation", "precision")
)
"""What a line of ``metrics.jsonl`` holds by itself."""


def check_embeddings(method: Method, outputs: Outputs) -> None:
    """Raise ``MmclError`` unless ``embed`` and ``embed_keys`` gave tensors by name."""
    for source, named in (("embed", outputs.embeddings), ("embed_keys", outputs.keys)):
        where = f"{type(method).__name__}.{source}"
        if not isinstance(named, dict):
            raise MmclError(
                f"{where} returned a value {_type(named)}; return a dict of tensors, by the names of views()"
            )
        for name, value in named.items():
            if not isinstance(value, Tensor):
                raise MmclError(f"{where}: '{name}' is {_type(value)}; return a tensor (N·count, D) for each view")


@contextmanager
def missing_views_named(method: Method, outputs: Outputs) -> Iterator[None]:
    """Around ``project`` and ``loss``: raises ``MmclError`` where they ask for a view that ``embed`` did not give."""
    try:
        yield
    except KeyError as error:
        name = error.args[0] if error.args else None
        if name not in method.views() or name in outputs.embeddings:
            raise
        given = ", ".join(f"'{each}'" for each in outputs.embeddings) or "nothing"
        raise MmclError(
            f"{type(method).__name__}.embed returned {given}, and not '{name}', which is in views() and which the loss "
            "asks for; return its embeddings by that name"
        ) from error


def check_loss(method: Method, loss: Any) -> None:
    """Raise ``MmclError`` unless ``loss`` is a :class:`Loss` of one element to differentiate, finite or not."""
    where = f"{type(method).__name__}.loss"
    if not isinstance(loss, Loss):
        raise MmclError(f"{where} returned a value {_type(loss)}; return Loss(value)")
    for name, value in {"value": loss.value, **loss.parts}.items():
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise MmclError(f"{where}: '{name}' of the Loss is {_type(value)}; give a tensor of one element")
    if not loss.value.requires_grad:
        raise MmclError(
            f"{where}: no gradient flows from its value to anything that learns; compute it of outputs.embeddings, "
            "without detach, item or no_grad, and leave something to learn"
        )
    _refuse_names(where, loss.parts, RESERVED, "part")


def check_metrics(method: Method, metrics: Any, logged: Mapping[str, float]) -> None:
    """Raise ``MmclError`` unless ``metrics`` are numbers by names that a line of the log, with ``logged``, has not."""
    where = f"{type(method).__name__}.metrics"
    if not isinstance(metrics, dict):
        raise MmclError(f"{where} returned a value {_type(metrics)}; return a dict of floats")
    for name, value in metrics.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise MmclError(f"{where}: '{name}' is {_type(value)}; return a float, of a tensor its .item()")
    _refuse_names(where, metrics, RESERVED | logged.keys(), "metric")


def _refuse_names(where: str, named: Mapping[str, Any], taken: frozenset[str], what: str) -> None:
    for name in named:
        if name in taken:
            raise MmclError(f"{where}: the log has a '{name}' already; give that {what} another name")


def _type(value: Any) -> str:
    """Its type and, of a tensor, its shape."""
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    return f"of type {type(value).__name__}{shape}"
