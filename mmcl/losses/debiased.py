"""InfoNCE corrected for negatives that are positives in truth, and with more weight on the hard ones."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.losses.logits.candidates import Ids, candidates, dense_logits
from mmcl.losses.logits.checks import scalar
from mmcl.losses.logits.negatives import Negatives


def debiased_info_nce(
    query: Tensor,
    key: Tensor,
    temperature: float | Tensor = 0.07,
    *,
    debias: float = 0.0,
    hardness: float = 0.0,
    ids: Ids | None = None,
    negatives: Negatives | None = None,
    symmetric: bool = True,
) -> Tensor:
    r"""InfoNCE whose denominator estimates what true negatives would give (Chuang et al. 2020, arXiv:2007.00224,
    eq. 8), from candidates of which the hard ones count more (Robinson et al. 2021, arXiv:2010.04592, section 3).

    With p the term exp(s(q_i, k_i) / τ) of a row's positive, s the cosine, and t_1, …, t_N the terms of all other
    candidates in the denominator of :func:`~mmcl.losses.info_nce`, row i contributes

    .. math:: -\log \frac{p}{p + G}, \quad
              G = \max\Big(\frac{R - τ^+ N p}{1 - τ^+},\; N e^{-1/τ}\Big), \quad
              R = N \frac{\sum_j t_j^β t_j}{\sum_j t_j^β}

    R is the sum over negatives, each weighted by its own t_j to the power of β. G subtracts the expected share of
    positives among them, and is at least what cosines of -1 would give. With τ⁺ = 0 and β = 0 the loss is InfoNCE.
    Gradient flows through the weights too, as in the authors' code.

    Args:
        query: (N, D) embeddings.
        key: (N, D) embeddings; row i is the positive of row i of ``query``.
        temperature: τ > 0, a number or a tensor of one element, through which gradient flows.
        debias: τ⁺ in [0, 1), the probability that a candidate is in truth a positive.
        hardness: β ≥ 0, the concentration on hard negatives.
        ids: as in :func:`~mmcl.losses.info_nce`; duplicates of a row are no candidates and do not count in N.
        negatives: (M, D) more keys, which are negatives of queries.
        symmetric: average with the direction from key to query.

    Returns:
        A scalar; float64 for float64 inputs, else float32, in which all sums are accumulated.

    Raises:
        ValueError: shapes do not fit, arguments that belong together are not given together, ``debias`` is not in
            [0, 1), or ``hardness`` is negative.

    >>> x = torch.eye(8)
    >>> debiased_info_nce(x, x, 0.5, debias=0.1) < debiased_info_nce(x, x, 0.5)
    tensor(True)
    """
    if not 0.0 <= debias < 1.0:
        raise ValueError(f"debias must be in [0, 1), not {debias}")
    if not hardness >= 0.0:
        raise ValueError(f"hardness must be 0 or more, not {hardness}")
    with torch.autocast(query.device.type, enabled=False):
        batch = candidates(query, key, ids=ids, negatives=negatives)
        directions = dense_logits(batch, temperature, symmetric=symmetric)
        losses = [_direction(logits, temperature, debias, hardness) for logits in directions]
        return torch.stack(losses).mean()


def _direction(logits: Tensor, temperature: float | Tensor, debias: float, hardness: float) -> Tensor:
    """The mean over the rows of (N, M) logits, whose positives are on the diagonal; -∞ is no candidate."""
    positive = logits.diagonal()  # ln p
    own = torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)
    others = logits.masked_fill(own, -torch.inf)  # ln t
    count = (~others.isneginf()).sum(dim=1)
    without = count == 0
    # The loss of a row without negatives is 0; zeros in their place keep infinities out of its gradient.
    others = others.masked_fill(without[:, None], 0.0)
    log_count = count.clamp(min=1).to(logits.dtype).log()

    total = ((1 + hardness) * others).logsumexp(dim=1)  # ln R
    if hardness > 0.0:
        total = total - (hardness * others).logsumexp(dim=1) + log_count
    if debias > 0.0:
        # ln(R - τ⁺ N p) = ln R + ln(1 - e^gap); where it comes near 0 or below, the lower bound takes over.
        gap = math.log(debias) + log_count + positive - total
        below = gap.clamp(max=-torch.finfo(gap.dtype).eps)
        corrected = total + torch.log(-torch.expm1(below)) - math.log1p(-debias)
        least = log_count - 1 / scalar(temperature)
        total = torch.where(gap < 0, torch.maximum(corrected, least), least)
    return F.softplus(total - positive).masked_fill(without, 0.0).mean()
