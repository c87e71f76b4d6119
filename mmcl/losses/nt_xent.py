"""NT-Xent, the contrastive loss of SimCLR, and its decoupled form."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.losses.blockwise.log_sum_exp import EMPTY, log_sum_exp, positive_logits
from mmcl.losses.blockwise.plan import DEFAULT, Blockwise, as_scale, make_plan, precision_of
from mmcl.losses.info_nce import info_nce
from mmcl.losses.logits.candidates import candidates, dense_logits
from mmcl.losses.logits.checks import check_pairs, check_temperature
from mmcl.runtime.distributed import rank, world_size


def nt_xent(
    view_a: Tensor,
    view_b: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    ids: Tensor | None = None,
    decoupled: bool = False,
    blockwise: Blockwise = DEFAULT,
) -> Tensor:
    r"""Normalised temperature-scaled cross-entropy between two views of each row (SimCLR, Chen et al. 2020,
    arXiv:2002.05709, eq. 1).

    With z the 2N embeddings of both views, p(i) the other view of the row of z_i, and s the cosine,

    .. math:: -\frac{1}{2N} \sum_{i=1}^{2N}
              \log \frac{\exp(s(z_i, z_{p(i)}) / τ)}{\sum_{j \neq i} \exp(s(z_i, z_j) / τ)}

    so that each embedding has one positive and 2N - 2 negatives, those of its own view among them. Decoupled, the
    positive leaves the denominator (DCL, Yeh et al. 2022, arXiv:2110.06848, eq. 6, as a mean rather than a sum): its
    gradient is then as large where the positive is easy, which lets small batches learn as large ones do. An embedding
    without negatives contributes nothing to it.

    Args:
        view_a: (N, D) embeddings of one view.
        view_b: (N, D) embeddings of the other; row i belongs to row i of ``view_a``.
        temperature: τ > 0, a number or a tensor of one element, through which gradient flows.
        ids: (N,) or (N, C) integers. Rows that agree in any of the C columns are duplicates, and leave each other's
            denominators. If absent all rows differ.
        decoupled: leave the positive out of its own denominator.
        blockwise: how the (2N, 2N) matrix of logits is computed; with ``across``, each process passes its own rows.

    Returns:
        A scalar; float64 for float64 inputs, else float32, in which all sums are accumulated.

    Raises:
        ValueError: shapes do not fit, or ``temperature`` is not one number above 0.

    >>> view = torch.eye(4)
    >>> round(nt_xent(view, view, 0.5).item(), 4)  # ln(1 + 6 exp(-2)): one positive of cosine 1, six negatives of 0
    0.5944
    >>> round(nt_xent(view, view, 0.5, decoupled=True).item(), 4)  # ln 6 - 2
    -0.2082
    """
    check_pairs(view_a, view_b, ids, names=("view_a", "view_b"), empty=blockwise.across is not None)
    if ids is None:  # one for each row of all processes
        ids = torch.arange(len(view_a), device=view_a.device) * world_size() + rank()
    query, key = torch.cat([view_a, view_b]), torch.cat([view_b, view_a])
    # Both views of a row have its id, so that an embedding is not its own negative.
    ids = torch.cat([ids, ids])
    if decoupled:
        return _decoupled(query, key, temperature, ids, blockwise)
    return info_nce(query, key, temperature, ids=ids, symmetric=False, blockwise=blockwise)


def _decoupled(query: Tensor, key: Tensor, temperature: float | Tensor, ids: Tensor, blockwise: Blockwise) -> Tensor:
    """The mean over the queries of the log-sum-exp of their negatives less the logit of their positive."""
    check_temperature(temperature)
    with torch.autocast(query.device.type, enabled=False):
        batch = candidates(query, key, ids=ids, empty=blockwise.across is not None)
        plan = make_plan(batch, blockwise, precision_of(query, key))
        if plan is None:
            (logits,) = dense_logits(batch, temperature, symmetric=False)
            own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
            return _margins(logits.masked_fill(own, EMPTY).logsumexp(dim=1), logits.diagonal()).mean()
        scale = as_scale(temperature, batch.queries.vectors)
        positives = positive_logits(batch.queries, batch.keys, scale, plan)
        # Without the positives: here terms far below them count, too.
        others, _ = log_sum_exp(batch.queries, batch.keys, plan.keys, scale, None, plan)
        total = _margins(others.lse, positives.to(others.lse.dtype)).sum() / plan.exchange.global_rows
        return plan.exchange.all_reduce_sum(total).to(positives.dtype)


def _margins(negatives: Tensor, positives: Tensor) -> Tensor:
    """(N,) log-sum-exps of negatives less logits of positives; 0 where there are no negatives."""
    return (negatives - positives).masked_fill(negatives <= EMPTY / 2, 0.0)
