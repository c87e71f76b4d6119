"""Similarities of embeddings, and the precision in which losses compute them."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from mmcl.losses.unit import unit_length

Similarity = Literal["cosine", "dot", "euclidean"]
"""How alike two embeddings are, larger for closer ones: ``euclidean`` is the negative distance."""


def prepare(*embeddings: Tensor, similarity: Similarity) -> tuple[Tensor, ...]:
    """Embeddings of one type, float32 or wider, and for ``cosine`` of unit length.

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
    """(N, M) similarities of (N, D) and (M, D) embeddings that :func:`prepare` returned."""
    if similarity == "euclidean":
        # |a|² + |b|² - 2ab cancels for close pairs, which matter most here.
        return -torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return a @ b.T
