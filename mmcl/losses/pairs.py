"""What the losses of paired embeddings share: their checks, their precision, similarity and identity."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from mmcl.losses.unit import unit_length

Similarity = Literal["cosine", "dot", "euclidean"]


def check_pairs(
    a: Tensor, b: Tensor, ids: Tensor | None = None, *, names: tuple[str, str], empty: bool = False
) -> None:
    """Raise ``ValueError`` unless ``a`` and ``b`` are (N, D) alike, and ``ids`` is (N,) or (N, K).

    ``empty`` allows N = 0.
    """
    if a.ndim != 2 or a.shape != b.shape or (len(a) == 0 and not empty):
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"{names[0]} and {names[1]} must be (N, D) with N ≥ 1, not {shapes}")
    check_ids(ids, len(a), "ids")


def check_ids(ids: Tensor | None, count: int, name: str) -> None:
    """Raise ``ValueError`` unless ``ids`` is (count,) or (count, K)."""
    if ids is not None and (ids.ndim not in (1, 2) or len(ids) != count):
        raise ValueError(f"{name} must be ({count},) or ({count}, K), not {tuple(ids.shape)}")


def check_number(value: float | Tensor, name: str) -> None:
    """Raise ``ValueError`` if ``value`` is a tensor of more or less than one element."""
    if torch.is_tensor(value) and value.numel() != 1:
        raise ValueError(f"{name} must be one number, not a tensor of shape {tuple(value.shape)}")


def check_temperature(value: float | Tensor, name: str = "temperature") -> None:
    """Raise ``ValueError`` unless ``value`` is a number above 0, or a tensor of one element, at which nobody waits to
    look."""
    check_number(value, name)
    if not torch.is_tensor(value) and not value > 0.0:
        raise ValueError(f"{name} must be above 0, not {value}")


def scalar(value: float | Tensor) -> float | Tensor:
    """A tensor of one element without its dimensions, with which it would widen what it meets to its own type."""
    return value.reshape(()) if torch.is_tensor(value) else value


def prepare(*embeddings: Tensor, similarity: Similarity) -> tuple[Tensor, ...]:
    """Raise half precision to float32, and give unit length where the similarity asks for it.

    Raises:
        ValueError: ``similarity`` is unknown.
    """
    if similarity not in get_args(Similarity):
        raise ValueError(f"similarity must be 'cosine', 'dot' or 'euclidean', not {similarity!r}")
    dtype = torch.float32
    for x in embeddings:
        dtype = torch.promote_types(dtype, x.dtype)
    ready = (x.to(dtype) for x in embeddings)
    return tuple(unit_length(x) if similarity == "cosine" else x for x in ready)


def similarities(a: Tensor, b: Tensor, similarity: Similarity) -> Tensor:
    """(N, M) similarities of (N, D) and (M, D), which :func:`prepare` made ready; larger is closer."""
    if similarity == "euclidean":
        # The short cut through |a|² + |b|² - 2ab cancels for the close pairs, which matter most here.
        return -torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return a @ b.T


def repeats(ids: Tensor) -> Tensor:
    """(N, N) true where two different rows are the same thing."""
    return same(ids, ids).fill_diagonal_(False)


def same(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) true where row i of ``a`` and row j of ``b`` agree in any column."""
    a, b = (ids[:, None] if ids.ndim == 1 else ids for ids in (a, b))
    found = torch.zeros(len(a), len(b), dtype=torch.bool, device=a.device)
    for ours, theirs in zip(a.unbind(dim=1), b.unbind(dim=1), strict=True):  # (N, M, K) at once would be the largest
        found |= ours[:, None] == theirs[None, :]
    return found
