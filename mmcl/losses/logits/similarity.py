"""Similarities of embeddings, their L2 normalisation, and the precision in which losses compute them."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

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


def unit_length(vectors: Tensor) -> Tensor:
    """L2-normalised rows of (N, D) ``vectors``; a row of zeros stays zero.

    Rows are first scaled by a power of two, because in float32 the squares of a row of length 1e20 overflow and those
    of a row of length 1e-25 underflow. The scaling is exact, so it changes no bit where the squares do neither.
    """
    if vectors.shape[1] == 0:
        return vectors
    _, exponent = torch.frexp(vectors.detach().abs().amax(dim=1, keepdim=True))
    most = math.frexp(torch.finfo(vectors.dtype).max)[1] - 2
    return F.normalize(torch.ldexp(vectors, -exponent.clamp(-most, most)), dim=1)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """As :func:`unit_length`, of an array (…, D) of floats, in its own precision."""
    _, exponent = np.frexp(np.abs(vectors).max(axis=-1, keepdims=True, initial=0.0))
    scaled = np.ldexp(vectors, -exponent)
    norms = np.linalg.norm(scaled, axis=-1, keepdims=True)
    norms[norms == 0] = 1
    scaled /= norms
    return scaled
