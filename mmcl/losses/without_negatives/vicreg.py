"""The variance, invariance and covariance of VICReg."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmcl.losses.logits.checks import check_pairs
from mmcl.losses.logits.similarity import prepare


class VicregTerms(NamedTuple):
    """What :func:`vicreg` is the weighted sum of.

    Attributes:
        invariance: mean squared difference of the views.
        variance: mean shortfall of the standard deviation of a dimension, of both views.
        covariance: squared covariances of different dimensions, summed and divided by D; the sum of both views.
    """

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def vicreg(
    a: Tensor,
    b: Tensor,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    *,
    epsilon: float = 1e-4,
) -> Tensor:
    r"""Variance-invariance-covariance regularisation of two views (VICReg, Bardes et al. 2022, arXiv:2105.04906,
    eq. 6).

    .. math:: λ \, s(a, b) + \frac{μ}{2} \big(v(a) + v(b)\big) + ν \big(c(a) + c(b)\big)

    with the terms of :func:`vicreg_terms`. As in the authors' code, of which the weights are meant, s is a mean over
    dimensions too, and v the mean of both views; the equation in the paper has D times the one and twice the other.

    Args:
        a: (N, D) expanded embeddings of one view.
        b: (N, D) of the other; row i belongs to row i of ``a``.
        invariance_weight: λ.
        variance_weight: μ.
        covariance_weight: ν.
        epsilon: see :func:`vicreg_terms`.

    Returns:
        A scalar; float64 for float64 inputs, else float32, in which all sums are accumulated.

    Raises:
        ValueError: the shapes differ or are not (N, D), N is less than 2, or a number is below 0.

    >>> view = 2 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # spread, and not correlated
    >>> vicreg(view, view).item(), vicreg(view, -view).item()
    (0.0, 400.0)
    """
    weights = (invariance_weight, variance_weight, covariance_weight)
    if not all(weight >= 0.0 for weight in weights):
        raise ValueError(f"the weights must be 0 or more, not {', '.join(map(str, weights))}")
    terms = vicreg_terms(a, b, epsilon=epsilon)
    return torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum()


def vicreg_terms(a: Tensor, b: Tensor, *, epsilon: float = 1e-4) -> VicregTerms:
    r"""The terms of :func:`vicreg` (Bardes et al. 2022, arXiv:2105.04906, eq. 1 to 5, as the authors compute them).

    With σ² and C the variances and the covariance matrix of a view over the rows, which divide by N - 1,

    .. math:: s = \frac{1}{ND} \sum_{i,d} (a_{id} - b_{id})^2, \quad
              v = \frac{1}{D} \sum_d \max\big(0, 1 - \sqrt{σ_d^2 + ε}\big), \quad
              c = \frac{1}{D} \sum_{d \neq e} C_{de}^2

    The batch is what is passed: on several processes pass the embeddings of the global batch, gathered.

    Args:
        a: (N, D) expanded embeddings of one view.
        b: (N, D) of the other.
        epsilon: ε ≥ 0; above 0 the gradient is finite where all rows are alike in a dimension.

    Returns:
        Three scalars; float64 for float64 inputs, else float32.

    Raises:
        ValueError: the shapes differ or are not (N, D), N is less than 2, or ``epsilon`` is below 0.

    >>> [term.item() for term in vicreg_terms(torch.zeros(2, 3), torch.ones(2, 3), epsilon=0.0)]  # collapsed
    [1.0, 1.0, 0.0]
    """
    check_pairs(a, b, names=("a", "b"))
    if len(a) < 2:
        raise ValueError("a and b must have two rows or more: one has no variance")
    if not epsilon >= 0.0:
        raise ValueError(f"epsilon must be 0 or more, not {epsilon}")
    with torch.autocast(a.device.type, enabled=False):
        a, b = prepare(a, b, similarity="dot")
        variance = (_variance(a, epsilon) + _variance(b, epsilon)) / 2
        return VicregTerms((a - b).square().mean(), variance, _covariance(a) + _covariance(b))


def _variance(view: Tensor, epsilon: float) -> Tensor:
    return (1 - (view.var(dim=0) + epsilon).sqrt()).relu().mean()


def _covariance(view: Tensor) -> Tensor:
    centred = view - view.mean(dim=0)
    covariance = centred.T @ centred / (len(view) - 1)
    # Zeros in place of the diagonal: subtracting its squares from those of all would cancel.
    rest = covariance - torch.diag(covariance.diagonal())
    return rest.square().sum() / len(rest)
