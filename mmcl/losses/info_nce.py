"""InfoNCE, the contrastive cross-entropy over a batch of pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.losses.blockwise.log_sum_exp import Statistics, log_sum_exp, positive_logits
from mmcl.losses.blockwise.plan import DEFAULT, BlockPlan, Blockwise, all_bfloat16, as_scale, make_plan
from mmcl.losses.logits.candidates import Candidates, Ids, candidates, dense_logits
from mmcl.losses.logits.checks import check_temperature
from mmcl.losses.logits.negatives import Guide, Negatives
from mmcl.losses.logits.similarity import Similarity


def info_nce(
    query: Tensor,
    key: Tensor,
    temperature: float | Tensor = 0.07,
    *,
    ids: Ids | None = None,
    negatives: Negatives | None = None,
    guide: Guide | None = None,
    symmetric: bool = True,
    similarity: Similarity = "cosine",
    label_smoothing: float = 0.0,
    blockwise: Blockwise = DEFAULT,
) -> Tensor:
    r"""Mean cross-entropy of each query's positive among all keys (van den Oord et al. 2018, arXiv:1807.03748, eq. 4;
    symmetric as in CLIP, Radford et al. 2021, arXiv:2103.00020, fig. 3; with hard negatives as in SimCSE, Gao et al.
    2021, arXiv:2104.08821, eq. 5 and appendix). With s the similarity and τ the temperature, query i contributes

    .. math:: -\log \frac{\exp(s(q_i, k_i) / τ)}
              {\sum_{j \in A(i)} \exp(s(q_i, k_j) / τ) + \sum_{m \in B(i)} α_{im} \exp(s(q_i, n_m) / τ)}

    where A(i) holds i and every j that is no duplicate of i, B(i) the negatives that are no duplicates of i, and α_im
    the weight of the negatives for their owner and 1 for other queries. A guide takes more out of A(i) and B(i).

    Args:
        query: (N, D) embeddings.
        key: (N, D) embeddings; row i is the positive of row i of ``query``.
        temperature: τ > 0, a number or a tensor of one element, through which gradient flows.
        ids: (N,) or (N, C) integers. Rows that agree in any of the C columns are duplicates, and leave each other's
            denominators. Or a pair of such tensors, ids of queries and ids of keys: for texts a paired with texts p,
            the columns (a, a, p, p) and (a, p, a, p) leave out whatever shares a text.
        negatives: (M, D) more keys, which are negatives of queries.
        guide: embeddings by another model, which leave out false negatives in both directions.
        symmetric: average with the direction from key to query.
        similarity: ``cosine``, ``dot``, or ``euclidean`` (the negative distance).
        label_smoothing: share of the target spread evenly over what is in the denominator (arXiv:1512.00567, sec. 7).
        blockwise: how the matrix of logits is computed: in tiles, and over several processes.

    Returns:
        A scalar; float64 for float64 inputs, else float32, in which all sums are accumulated.

    Raises:
        ValueError: shapes or arguments do not fit together, or are out of range; on all processes, if they do not give
            the same arguments, (0, D) where one has none, or none of them has a row.

    >>> image = torch.eye(8)
    >>> info_nce(image, image).item() < 1e-4  # every image is nearest to its own text
    True
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1), not {label_smoothing}")
    check_temperature(temperature)
    with torch.autocast(query.device.type, enabled=False):
        empty = blockwise.across is not None
        batch = candidates(query, key, ids=ids, negatives=negatives, guide=guide, similarity=similarity, empty=empty)
        bfloat16 = all_bfloat16(query, key, None if negatives is None else negatives.vectors)
        plan = make_plan(batch, blockwise, bfloat16=bfloat16)
        if plan is not None:
            return _blockwise(batch, temperature, plan, symmetric, label_smoothing)
        directions = dense_logits(batch, temperature, symmetric=symmetric)
        return torch.stack([_cross_entropy(logits, label_smoothing) for logits in directions]).mean()


def _blockwise(
    batch: Candidates, temperature: float | Tensor, plan: BlockPlan, symmetric: bool, label_smoothing: float
) -> Tensor:
    """The loss by statistics of each row's candidates other than its positive."""
    queries, keys, negatives, weight, _ = batch
    scale = as_scale(temperature, queries.vectors)
    positives = positive_logits(queries, keys, scale, plan)
    totals = label_smoothing > 0.0
    forward, backward = log_sum_exp(queries, keys, plan.keys, scale, positives, plan, both=symmetric, totals=totals)
    if negatives is not None:
        if weight == 1.0:
            negatives = negatives._replace(owner=None)
        more, _ = log_sum_exp(queries, negatives, plan.negatives, scale, positives, plan, totals=totals, weight=weight)
        forward = Statistics(torch.logaddexp(forward.lse, more.lse), *map(torch.add, forward[1:], more[1:]))
    directions = [forward, backward] if symmetric else [forward]
    losses = [_cross_entropy_of(others, positives.to(others.lse.dtype), label_smoothing) for others in directions]
    loss = torch.stack(losses).mean(dim=0).sum() / plan.exchange.global_rows
    return plan.exchange.all_reduce_sum(loss).to(positives.dtype)


def _cross_entropy_of(others: Statistics, positives: Tensor, label_smoothing: float) -> Tensor:
    """(N,) cross-entropies from the logits of the positives and the statistics of all other candidates."""
    # log(1 + exp(·)); the threshold above which it returns its argument is too low for float64 by default.
    loss = F.softplus(others.lse - positives, threshold=40.0)
    if label_smoothing > 0.0:
        even = (others.total + positives) / (others.number + 1) - (positives + loss)
        loss = (1 - label_smoothing) * loss - label_smoothing * even
    return loss


def _cross_entropy(logits: Tensor, label_smoothing: float) -> Tensor:
    """Mean over the rows of (N, M) logits whose positives are on the diagonal; -∞ is no candidate."""
    log_p = logits.log_softmax(dim=1)
    gain = log_p.diagonal().contiguous()
    if label_smoothing > 0.0:
        # F.cross_entropy would spread the target over what is no candidate, and give infinity.
        absent = logits.isneginf()
        even = log_p.masked_fill(absent, 0.0).sum(dim=1) / (~absent).sum(dim=1)
        gain = (1 - label_smoothing) * gain + label_smoothing * even
    return -gain.mean()
