"""The contrastive loss of pairs that are the same or different."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.losses.logits.checks import check_margin, check_pairs
from mmcl.losses.logits.similarity import prepare


def contrastive(a: Tensor, b: Tensor, same: Tensor, margin: float = 1.0) -> Tensor:
    r"""Contrastive loss of pairs that are the same or different (Hadsell, Chopra & LeCun 2006, "Dimensionality
    Reduction by Learning an Invariant Mapping", CVPR, eq. 4).

    With d the Euclidean distance of a pair, and y = 1 where it is the same and 0 where it is different,

    .. math:: \frac{1}{N} \sum_i \frac{1}{2} \big(y_i \, d_i^2 + (1 - y_i) \max(0, m - d_i)^2\big)

    The paper takes the sum over the pairs where this takes the mean, and calls Y what is 1 - y here. The embeddings are
    compared as they are: of unit vectors d is at most 2, and √2 where the cosine is 0.

    Args:
        a: (N, D) embeddings.
        b: (N, D) embeddings; row i makes a pair with row i of ``a``.
        same: (N,) bool.
        margin: m > 0, the distance beyond which a pair of different things costs nothing.

    Returns:
        A scalar; float64 for float64 inputs, else float32. The gradient of a distance that is 0 is 0.

    Raises:
        ValueError: shapes do not fit, ``same`` is not bool, or ``margin`` is not above 0.

    >>> a, b = torch.zeros(2, 1), torch.tensor([[0.6], [0.6]])
    >>> round(contrastive(a, b, torch.tensor([True, False])).item(), 4)  # ½ · (0.6² + 0.4²) / 2
    0.13
    """
    check_pairs(a, b, names=("a", "b"))
    check_margin(margin)
    if same.shape != (len(a),) or same.dtype != torch.bool:
        raise ValueError(f"same must be bool ({len(a)},), not {same.dtype} {tuple(same.shape)}")
    with torch.autocast(a.device.type, enabled=False):
        a, b = prepare(a, b, similarity="dot")
        distance = torch.linalg.vector_norm(a - b, dim=1)
        short = (margin - distance).relu()
        return torch.where(same, distance, short).square().mean() / 2
