"""The redundancy reduction of Barlow Twins."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.losses.logits.checks import check_pairs
from mmcl.losses.logits.similarity import prepare


def barlow_twins(a: Tensor, b: Tensor, redundancy_weight: float = 5e-3, *, epsilon: float = 1e-5) -> Tensor:
    r"""Distance of the cross-correlation of two views from the identity (Barlow Twins, Zbontar et al. 2021,
    arXiv:2103.03230, eq. 1).

    With C as :func:`cross_correlation` gives it,

    .. math:: \sum_i (1 - C_{ii})^2 + λ \sum_i \sum_{j \neq i} C_{ij}^2

    It grows with D: the sums are over dimensions, not means. The batch is what is passed: on several processes pass
    the embeddings of the global batch, gathered.

    Args:
        a: (N, D) projections of one view.
        b: (N, D) projections of the other; row i belongs to row i of ``a``.
        redundancy_weight: λ ≥ 0, of the elements off the diagonal; 5e-3 in the paper, 0.0051 in the authors' code.
        epsilon: see :func:`cross_correlation`.

    Returns:
        A scalar; float64 for float64 inputs, else float32, in which all sums are accumulated.

    Raises:
        ValueError: the shapes differ, are not (N, D), N is 0, or a number is below 0.

    >>> view = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # two dimensions, not correlated
    >>> round(barlow_twins(view, view).item(), 4), round(barlow_twins(view, view.flip(1)).item(), 4)
    (0.0, 2.01)
    """
    if not redundancy_weight >= 0.0:
        raise ValueError(f"redundancy_weight must be 0 or more, not {redundancy_weight}")
    with torch.autocast(a.device.type, enabled=False):
        correlation = cross_correlation(a, b, epsilon=epsilon)
        diagonal = correlation.diagonal()
        # Zeros in place of the diagonal: subtracting its squares from those of all would cancel.
        rest = correlation - torch.diag(diagonal)
        return (1 - diagonal).square().sum() + redundancy_weight * rest.square().sum()


def cross_correlation(a: Tensor, b: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    r"""Correlation of every dimension of one view with every dimension of the other, over the rows (Barlow Twins,
    Zbontar et al. 2021, arXiv:2103.03230, eq. 2, of embeddings with their means over the rows subtracted).

    .. math:: C_{ij} = \frac{1}{N} \sum_b
              \frac{a_{bi} - \bar a_i}{\sqrt{σ^2(a_i) + ε}} \frac{b_{bj} - \bar b_j}{\sqrt{σ^2(b_j) + ε}}

    with the variance σ² that divides by N.

    Args:
        a: (N, D) projections of one view.
        b: (N, D) projections of the other; row i belongs to row i of ``a``.
        epsilon: ε ≥ 0, that of the batch normalisation in the authors' code; the paper's equation has none. A dimension
            in which all rows are alike correlates with nothing, rather than with its rounding errors.

    Returns:
        (D, D), elements in [-1, 1]; float64 for float64 inputs, else float32.

    Raises:
        ValueError: the shapes differ, are not (N, D), N is 0, or ``epsilon`` is below 0.

    >>> cross_correlation(torch.tensor([[1.0], [-1.0]]), torch.tensor([[-3.0], [3.0]]), epsilon=0.0)
    tensor([[-1.]])
    """
    check_pairs(a, b, names=("a", "b"))
    if not epsilon >= 0.0:
        raise ValueError(f"epsilon must be 0 or more, not {epsilon}")
    with torch.autocast(a.device.type, enabled=False):
        a, b = (_standard(view, epsilon) for view in prepare(a, b, similarity="dot"))
        return a.T @ b / len(a)


def _standard(view: Tensor, epsilon: float) -> Tensor:
    centred = view - view.mean(dim=0)
    return centred * (centred.square().mean(dim=0) + epsilon).rsqrt()
