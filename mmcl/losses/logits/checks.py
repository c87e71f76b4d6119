"""Checks of the arguments of losses."""

from __future__ import annotations

import torch
from torch import Tensor


def check_pairs(
    a: Tensor, b: Tensor, ids: Tensor | None = None, *, names: tuple[str, str], empty: bool = False
) -> None:
    """Raise ``ValueError`` unless ``a`` and ``b`` are both (N, D), and ``ids`` is (N,) or (N, C).

    ``empty`` allows N = 0.
    """
    if a.ndim != 2 or a.shape != b.shape or (len(a) == 0 and not empty):
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"{names[0]} and {names[1]} must be (N, D) with N ≥ 1, not {shapes}")
    if ids is not None:
        check_ids(ids, len(a), "ids")


def check_ids(ids: Tensor, count: int, name: str) -> None:
    """Raise ``ValueError`` unless ``ids`` is (count,) or (count, C)."""
    if ids.ndim not in (1, 2) or len(ids) != count:
        raise ValueError(f"{name} must be ({count},) or ({count}, C), not {tuple(ids.shape)}")


def check_number(value: float | Tensor, name: str) -> None:
    """Raise ``ValueError`` if ``value`` is a tensor of more or less than one element."""
    if torch.is_tensor(value) and value.numel() != 1:
        raise ValueError(f"{name} must be one number, not a tensor of shape {tuple(value.shape)}")


def check_temperature(value: float | Tensor, name: str = "temperature") -> None:
    """Raise ``ValueError`` unless ``value`` is a number above 0 or a tensor of one element.

    The element is not looked at, since the host would have to wait for the device.
    """
    check_number(value, name)
    if not torch.is_tensor(value) and not value > 0.0:
        raise ValueError(f"{name} must be above 0, not {value}")


def scalar(value: float | Tensor) -> float | Tensor:
    """``value``, as a tensor without dimensions if it is one: in this shape it does not widen the type of what it is
    multiplied with."""
    return value.reshape(()) if torch.is_tensor(value) else value


def check_margin(value: float) -> None:
    """Raise ``ValueError`` unless ``value`` is above 0."""
    if not value > 0.0:
        raise ValueError(f"margin must be above 0, not {value}")
