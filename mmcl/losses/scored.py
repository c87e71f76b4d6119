"""Losses of pairs with a similarity score."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.losses.logits.checks import check_pairs, check_temperature, scalar
from mmcl.losses.logits.similarity import prepare


def cosent(query: Tensor, key: Tensor, score: Tensor, temperature: float | Tensor = 0.05) -> Tensor:
    r"""Ranking loss that orders the cosines of pairs by their scores (CoSENT, Su 2022, https://kexue.fm/archives/8847;
    Huang et al. 2024, IEEE/ACM TASLP 32).

    With c the cosines and y the scores,

    .. math:: \log \Big(1 + \sum_{y_i > y_j} \exp\big((c_j - c_i) / τ\big)\Big)

    Only the order of the scores matters, so that they may have any range; pairs of equal scores are not compared.

    Args:
        query: (N, D) embeddings.
        key: (N, D) embeddings; row i belongs to row i of ``query``.
        score: (N,), larger for more similar pairs.
        temperature: τ > 0, a number or a tensor of one element, through which gradient flows.

    Returns:
        A scalar; float64 for float64 inputs, else float32, in which all sums are accumulated.

    Raises:
        ValueError: shapes do not fit, or ``temperature`` is not one number above 0.

    >>> a, b = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])  # cosines 1 and 0
    >>> cosent(a, b, torch.tensor([5.0, 0.0])) < cosent(a, b, torch.tensor([0.0, 5.0]))
    tensor(True)
    """
    check_temperature(temperature)
    with torch.autocast(query.device.type, enabled=False):
        cosines = _cosines(query, key, score) / scalar(temperature)
        excess = cosines[None, :] - cosines[:, None]  # (N, N): how much closer pair j is than pair i
        wrong_order = excess[score[:, None] > score[None, :]]
        return torch.cat([excess.new_zeros(1), wrong_order]).logsumexp(dim=0)


def cosine_mse(query: Tensor, key: Tensor, target: Tensor) -> Tensor:
    """Mean squared error between the cosines of pairs and target cosines (Reimers & Gurevych 2019, arXiv:1908.10084,
    section 3, "regression objective function").

    Args:
        query: (N, D) embeddings.
        key: (N, D) embeddings; row i belongs to row i of ``query``.
        target: (N,) target cosines, in [-1, 1].

    Returns:
        A scalar; float64 for float64 inputs, else float32.

    Raises:
        ValueError: shapes do not fit.

    >>> cosine_mse(torch.eye(2), torch.eye(2), torch.tensor([1.0, 0.0])).item()
    0.5
    """
    with torch.autocast(query.device.type, enabled=False):
        cosines = _cosines(query, key, target)
        return F.mse_loss(cosines, target.to(cosines.dtype))


def _cosines(query: Tensor, key: Tensor, score: Tensor) -> Tensor:
    check_pairs(query, key, names=("query", "key"))
    if score.shape != (len(query),):
        raise ValueError(f"there must be one score for each of {len(query)} pairs, not {tuple(score.shape)}")
    query, key = prepare(query, key, similarity="cosine")
    return (query * key).sum(dim=1)
