"""Multinomial logistic regression with an L2 penalty, by full-batch L-BFGS: its optimum is one, whatever the start."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F

from mmcl.evaluation.metrics.ranking import Vectors

_ROWS = 65536  # of a block: of the logits, no more are held
_MOST_ITERATIONS = 1000


@dataclass(frozen=True)
class Standardised:
    """(N, D) float32 vectors of mean 0 and standard deviation 1, and what maps others likewise.

    Dimensions in which the rows do not differ become 0.
    """

    values: Tensor
    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, vectors: Vectors, device: torch.device) -> Standardised:
        """The vectors, on the device."""
        values = _float32(vectors, device)
        mean, spread = values.mean(0), values.std(0, correction=0)
        scale = torch.where(spread > 1e-6 * spread.max(), 1 / spread, 0.0)
        return cls((values - mean) * scale, mean, scale)

    def map(self, vectors: Vectors) -> Tensor:
        """Other vectors by the same mean and scale."""
        return (_float32(vectors, self.values.device) - self.mean) * self.scale


@dataclass(frozen=True)
class Linear:
    """C linear functions of D numbers."""

    weight: Tensor  # (D, C)
    bias: Tensor  # (C,)

    def __call__(self, values: Tensor) -> Tensor:
        """(N, C) logits of (N, D) values."""
        return torch.addmm(self.bias, values, self.weight)


def fit_logistic(values: Tensor, labels: Tensor, classes: int, l2: float, start: Linear | None = None) -> Linear:
    """Minimise the mean of −log softmax(xᵀW + b)_y plus l2/2 · ‖W‖².

    As scikit-learn's ``LogisticRegression`` with C = 1/(l2 · N). Logits and gradient are computed in float32 on the
    device of ``values``, their sums over the rows and the steps (scipy's L-BFGS) in float64. The steps are taken in
    coordinates in which the curvature is about 1 in every direction (features of a network are correlated, so that
    without it weak penalties take a thousand steps instead of some thirty); the optimum is the same.

    Args:
        values: (N, D) float32.
        labels: (N,) int64 from 0 to ``classes`` - 1.
        classes: C.
        l2: weight of the penalty, above 0.
        start: where to begin, such as the optimum for another ``l2``; by default at 0.
    """
    rows, dim = values.shape
    device, blocks = values.device, list(zip(values.split(_ROWS), labels.split(_ROWS), strict=True))
    factor = _curvature_factor(values, classes, l2)

    def linear_of(parameters: np.ndarray) -> Linear:
        both = torch.from_numpy(parameters).view(dim + 1, classes).to(device)
        weight = torch.linalg.solve_triangular(factor.T, both[:-1], upper=True)
        return Linear(weight.float(), both[-1].float())

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        linear, total, gradient = linear_of(parameters), 0.0, torch.zeros(dim + 1, classes, device=device)
        for block, own in blocks:
            log_shares = linear(block).log_softmax(1)
            total -= float(log_shares.gather(1, own[:, None]).cpu().double().sum())
            residual = log_shares.exp_() - F.one_hot(own, classes)
            gradient[:-1] += block.T @ residual
            gradient[-1] += residual.sum(0)
        slope = gradient.double() / rows
        weight = linear.weight.double()
        slope[:-1] = torch.linalg.solve_triangular(factor, slope[:-1] + l2 * weight, upper=False)
        return total / rows + l2 / 2 * float(weight.square().sum()), slope.cpu().numpy().ravel()

    first = np.zeros((dim + 1) * classes)
    if start is not None:
        first = torch.cat([factor.T @ start.weight.double(), start.bias[None].double()]).cpu().numpy().ravel()
    options = {"maxiter": _MOST_ITERATIONS, "gtol": 1e-6, "ftol": 1e-9}
    with threadpool_limits(1, "blas"):  # scipy's threads wait for work in a loop, on the cores that torch's need
        return linear_of(minimize(objective, first, jac=True, method="L-BFGS-B", options=options).x)


def _curvature_factor(values: Tensor, classes: int, l2: float) -> Tensor:
    """(D, D) float64 lower triangle G, where G Gᵀ is the curvature of the objective where all classes are as likely."""
    curvature = values.new_zeros(values.shape[1], values.shape[1], dtype=torch.float64)
    for block in values.split(_ROWS):
        curvature += block.T @ block
    curvature /= len(values) * classes
    curvature.diagonal().add_(l2)
    return torch.linalg.cholesky(curvature)


def _float32(vectors: Vectors, device: torch.device) -> Tensor:
    if not isinstance(vectors, Tensor):
        vectors = torch.from_numpy(np.array(vectors, dtype=np.float32))  # a copy: a memory map may be read-only
    return vectors.to(device, torch.float32)
