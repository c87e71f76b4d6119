"""InfoNCE, the contrastive cross-entropy over a batch of pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.losses.blockwise.log_sum_exp import EMPTY, Statistics, log_sum_exp, positive_logits
from mmcl.losses.blockwise.plan import DEFAULT, BlockPlan, Blockwise, as_scale, make_plan, precision_of
from mmcl.losses.blockwise.positive_terms import positive_terms
from mmcl.losses.logits.candidates import Candidates, EmbeddingSet, Ids, candidates, dense_logits, positive_mask
from mmcl.losses.logits.checks import check_temperature
from mmcl.losses.logits.negatives import Guide, Negatives
from mmcl.losses.logits.positives import Positives
from mmcl.losses.logits.similarity import Similarity


def info_nce(
    query: Tensor,
    key: Tensor | None,
    temperature: float | Tensor = 0.07,
    *,
    ids: Ids | None = None,
    positives: Positives | None = None,
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

    With ``positives`` a query has all keys of its group as positives P(i), any number of them, and contributes the mean
    of their cross-entropies (L_out of SupCon, Khosla et al. 2020, arXiv:2004.11362, eq. 2, where keys are the queries):

    .. math:: \frac{1}{|P(i)|} \sum_{p \in P(i)} -\log
              \frac{\exp(s(q_i, k_p) / τ)}{\sum_{j \in A(i)} \exp(s(q_i, k_j) / τ) + \dots}

    A(i) then holds P(i) and all other keys that are no duplicates of i; where positives do not compete, p in place of
    P(i). The mean is over the queries that have a positive: others contribute nothing.

    Args:
        query: (N, D) embeddings.
        key: (N, D) embeddings; row i is the positive of row i of ``query``. With ``positives`` (M, D), or None: the
            queries themselves, each compared with all others.
        temperature: τ > 0, a number or a tensor of one element, through which gradient flows.
        ids: (N,) or (N, C) integers. Rows that agree in any of the C columns are duplicates, and leave each other's
            denominators. Or a pair of such tensors, ids of queries and ids of keys: for texts a paired with texts p,
            the columns (a, a, p, p) and (a, p, a, p) leave out whatever shares a text. Positives stay.
        positives: any number of them for each query, rather than one. In tiles the log-sum-exps are then computed by
            the Triton kernels only without ``ids``, and the terms of the positives by torch.
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
    >>> labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])  # ln 7: none of the seven others is nearer than another
    >>> round(info_nce(image, None, positives=Positives(labels)).item(), 4)
    1.9459
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1), not {label_smoothing}")
    if label_smoothing > 0.0 and positives is not None and not positives.compete:
        raise ValueError("label_smoothing is over all candidates, which positives that do not compete do not share")
    check_temperature(temperature)
    with torch.autocast(query.device.type, enabled=False):
        empty = blockwise.across is not None
        batch = candidates(
            *(query, key),
            ids=ids,
            positives=positives,
            negatives=negatives,
            guide=guide,
            similarity=similarity,
            empty=empty,
        )
        symmetric = symmetric and key is not None  # else both directions are the same
        precision = precision_of(query, key, None if negatives is None else negatives.vectors)
        plan = make_plan(batch, blockwise, precision)
        if positives is not None:
            return _of_groups(batch, temperature, plan, symmetric, label_smoothing, positives.compete)
        if plan is not None:
            return _blockwise(batch, temperature, plan, symmetric, label_smoothing)
        directions = dense_logits(batch, temperature, symmetric=symmetric)
        return torch.stack([_cross_entropy(logits, label_smoothing) for logits in directions]).mean()


def _blockwise(
    batch: Candidates, temperature: float | Tensor, plan: BlockPlan, symmetric: bool, label_smoothing: float
) -> Tensor:
    """The loss by statistics of each row's candidates other than its positive."""
    queries, keys = batch.queries, batch.keys
    scale = as_scale(temperature, queries.vectors)
    positives = positive_logits(queries, keys, scale, plan)
    totals = label_smoothing > 0.0
    forward, backward = log_sum_exp(queries, keys, plan.keys, scale, positives, plan, both=symmetric, totals=totals)
    forward = _with_negatives(forward, batch, scale, positives, plan, totals)
    directions = [forward, backward] if symmetric else [forward]
    losses = [_cross_entropy_of(others, positives.to(others.lse.dtype), label_smoothing) for others in directions]
    loss = torch.stack(losses).mean(dim=0).sum() / plan.exchange.global_rows
    return plan.exchange.all_reduce_sum(loss).to(positives.dtype)


def _with_negatives(
    forward: Statistics, batch: Candidates, scale: Tensor, positives: Tensor | None, plan: BlockPlan, totals: bool
) -> Statistics:
    """The statistics of the keys together with those of the negatives."""
    queries, _, negatives, weight, _ = batch
    if negatives is None:
        return forward
    if weight == 1.0:
        negatives = negatives._replace(owner=None)
    more, _ = log_sum_exp(queries, negatives, plan.negatives, scale, positives, plan, totals=totals, weight=weight)
    return Statistics(torch.logaddexp(forward.lse, more.lse), *map(torch.add, forward[1:], more[1:]))


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


class _OfPositives(NamedTuple):
    """What a direction of the matrix of logits is to the positives of its N rows.

    Attributes:
        total: (N,) sum of their cross-entropies.
        number: (N,) of them.
        even: (N,) mean cross-entropy of all candidates, for label smoothing.
    """

    total: Tensor
    number: Tensor
    even: Tensor


def _of_groups(
    batch: Candidates,
    temperature: float | Tensor,
    plan: BlockPlan | None,
    symmetric: bool,
    label_smoothing: float,
    compete: bool,
) -> Tensor:
    """The mean, over the rows that have positives, of the means over these."""
    together: Callable[[Tensor], Tensor] = torch.clone if plan is None else plan.exchange.all_reduce_sum
    if plan is None:
        directions = _of_groups_dense(batch, temperature, symmetric, compete)
    else:
        directions = _of_groups_in_tiles(batch, temperature, plan, symmetric, label_smoothing > 0.0, compete)
    losses = []
    for total, number, even in directions:
        rows = total / number.clamp(min=1)
        if label_smoothing > 0.0:
            rows = (1 - label_smoothing) * rows + label_smoothing * even
        having = together((number > 0).sum()).clamp(min=1)
        losses.append(rows.masked_fill(number == 0, 0.0).sum() / having)
    return together(torch.stack(losses).mean()).to(batch.queries.vectors.dtype)


def _of_groups_dense(
    batch: Candidates, temperature: float | Tensor, symmetric: bool, compete: bool
) -> Iterator[_OfPositives]:
    positive = positive_mask(batch.queries, batch.keys)  # (N, M)
    directions = dense_logits(batch, temperature, symmetric=symmetric)
    for logits, of_row in zip(directions, (positive, positive.T), strict=False):
        absent = logits.isneginf()
        left_out = absent if compete else absent | F.pad(of_row, (0, logits.shape[1] - of_row.shape[1]))
        empty = left_out.all(dim=1, keepdim=True)  # the gradient of a log-sum-exp of -∞ is no number
        lse = logits.masked_fill(left_out, -torch.inf).masked_fill(empty, EMPTY).logsumexp(dim=1, keepdim=True)
        terms = lse - logits[:, : of_row.shape[1]]
        if not compete:
            terms = F.softplus(terms, threshold=40.0)
        even = lse.squeeze(1) - logits.masked_fill(absent, 0.0).sum(dim=1) / (~absent).sum(dim=1).clamp(min=1)
        yield _OfPositives(terms.masked_fill(~of_row, 0.0).sum(dim=1), of_row.sum(dim=1), even)


def _of_groups_in_tiles(
    batch: Candidates, temperature: float | Tensor, plan: BlockPlan, symmetric: bool, totals: bool, compete: bool
) -> Iterator[_OfPositives]:
    """First the denominators of all rows, then the terms of their positives."""
    scale = as_scale(temperature, batch.queries.vectors)
    rows, columns = (part if compete else _group_as_id(part) for part in (batch.queries, batch.keys))
    forward, backward = log_sum_exp(rows, columns, plan.keys, scale, None, plan, both=symmetric, totals=totals)
    others = _with_negatives(forward, batch, scale, None, plan, totals), backward
    terms = positive_terms(batch.queries, batch.keys, scale, others, plan, both=symmetric, compete=compete)
    for (total, number), (lse, logits, count) in list(zip(terms, others, strict=True))[: 1 + symmetric]:
        yield _OfPositives(total, number, lse - logits / count.clamp(min=1))


def _group_as_id(part: EmbeddingSet) -> EmbeddingSet:
    """The group as one more identity, by which positives are no candidates."""
    assert part.group is not None
    ids = [] if part.ids is None else [part.ids.view(len(part.group), -1)]
    return part._replace(ids=torch.cat([*ids, part.group[:, None]], dim=1), group=None)
