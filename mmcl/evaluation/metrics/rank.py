"""How many dimensions embeddings use: the effective rank of a spectrum, RankMe and LiDAR. No labels are needed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mmcl.evaluation.inputs import matrix
from mmcl.evaluation.metrics.ranking import Vectors
from mmcl.runtime.errors import MmclError

_EPSILON = 1e-7  # of both papers, for embeddings in float32
_ROWS = 4096  # of a block


def spectrum_rank(spectrum: Tensor, epsilon: float = 0.0) -> float:
    """exp of the entropy of a spectrum's shares of its sum (Roy and Vetterli 2007): from 1 to its length.

    Args:
        spectrum: (K,), not negative.
        epsilon: added to each share.
    """
    shares = spectrum / spectrum.sum().clamp(min=torch.finfo(spectrum.dtype).tiny) + epsilon  # of zeros alone: none
    return float(torch.exp(torch.special.entr(shares).sum()))


def rank_me(vectors: Vectors, *, device: str | torch.device | None = None) -> float:
    """RankMe (Garrido et al. 2023, arXiv:2210.02885, eq. 1): the effective rank of the matrix of embeddings.

    exp(−Σ p log p) of p_k = σ_k / ‖σ‖₁ + 10⁻⁷, with the singular values σ of the matrix as it is: neither centred nor
    normalised. The paper takes 25,600 images or more, and compares models of one width.

    Args:
        vectors: (N, D), as the tower or the projector gives them.
        device: where to compute, in float64; by default where ``vectors`` lie if they are a tensor, else the CPU.

    Raises:
        MmclError: vectors that are empty or not finite.
    """
    vectors = matrix("vectors", vectors)
    where = torch.device(device or (vectors.device if isinstance(vectors, Tensor) else "cpu"))
    gram = torch.zeros(vectors.shape[1], vectors.shape[1], dtype=torch.float64, device=where)
    for start in range(0, len(vectors), _ROWS):
        part = _float64(vectors[start : start + _ROWS], where)
        gram += part.T @ part
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()[-len(vectors) :]  # there are no more of fewer rows
    return spectrum_rank(singular, _EPSILON)


def lidar(views: Vectors, *, delta: float = 1e-4, device: str | torch.device | None = None) -> float:
    """LiDAR (Thilak et al. 2024, arXiv:2312.04000, eq. 1–4): the effective rank of what tells images apart.

    exp(−Σ p log p) of p_k = λ_k / ‖λ‖₁ + 10⁻⁷, with the eigenvalues λ of Σ_w^(−1/2) Σ_b Σ_w^(−1/2): of the covariance
    of the images' means, in units of that of the views of an image around their mean, to which δ is added. Unlike
    RankMe, what differs between views of the same image does not count as rank. The paper takes 1,000 images with 50
    views each.

    Args:
        views: (n, q, D) embeddings of q views of each of n images.
        delta: δ.
        device: as of :func:`rank_me`.

    Raises:
        MmclError: fewer than two images or views, or numbers that are not finite.
    """
    if views.ndim != 3 or min(views.shape[:2]) < 2:
        raise MmclError(f"lidar: expected at least two images with two views, (n, q, D), not {tuple(views.shape)}")
    where = torch.device(device or (views.device if isinstance(views, Tensor) else "cpu"))
    vectors = _float64(views, where)
    matrix("views", vectors.flatten(0, 1))
    means = vectors.mean(1)  # (n, D)
    between = torch.cov(means.T, correction=0)
    within = torch.cov((vectors - means[:, None]).flatten(0, 1).T, correction=0)
    variances, directions = torch.linalg.eigh(within + delta * torch.eye(within.shape[0]).to(within))
    whiten = directions * variances.clamp(min=delta).rsqrt() @ directions.T
    spectrum = torch.linalg.eigvalsh(whiten @ between @ whiten).clamp(min=0)
    return spectrum_rank(spectrum, _EPSILON)


def _float64(vectors: Vectors, device: torch.device) -> Tensor:
    if not isinstance(vectors, Tensor):
        vectors = torch.from_numpy(np.array(vectors, dtype=np.float64))  # a copy: a memory map may be read-only
    return vectors.to(device, torch.float64)
