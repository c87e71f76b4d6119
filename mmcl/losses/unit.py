"""L2 normalisation of vectors of any length that floating-point numbers can represent."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


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
    unit: np.ndarray = scaled / norms
    return unit
