"""InfoNCE against a queue of former keys, the loss of MoCo."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.losses.blockwise.plan import DEFAULT, Blockwise
from mmcl.losses.info_nce import info_nce
from mmcl.losses.logits.checks import check_pairs
from mmcl.losses.logits.negatives import Negatives


def queue_info_nce(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    temperature: float | Tensor = 0.07,
    *,
    ids: Tensor | None = None,
    queue_ids: Tensor | None = None,
    blockwise: Blockwise = DEFAULT,
) -> Tensor:
    r"""Mean cross-entropy of each query's positive among the positive and the keys of a queue (MoCo, He et al. 2020,
    arXiv:1911.05722, eq. 1).

    With s the cosine and u the keys of the queue, query i contributes

    .. math:: -\log \frac{\exp(s(q_i, k_i) / τ)}
              {\exp(s(q_i, k_i) / τ) + \sum_{j \in A(i)} \exp(s(q_i, u_j) / τ)}

    where A(i) holds every j that is no duplicate of i. The keys of other rows of the batch are no negatives.

    Args:
        query: (N, D) embeddings.
        key: (N, D) embeddings by the momentum copy; row i is the positive of row i of ``query``.
        queue: (K, D) keys of former batches.
        temperature: τ > 0, a number or a tensor of one element, through which gradient flows.
        ids: (N,) or (N, C) identities of the rows. Keys of the queue that agree with a row in any of the C columns are
            its duplicates. If absent, with ``queue_ids``, there are none.
        queue_ids: (K,) or (K, C) identities of the keys of the queue.
        blockwise: how the matrix of logits is computed.

    Returns:
        A scalar; float64 for float64 inputs, else float32, in which all sums are accumulated.

    Raises:
        ValueError: shapes do not fit, or ``temperature`` is not one number above 0.

    >>> query, queue = torch.eye(4), -torch.eye(4)
    >>> round(queue_info_nce(query, query, queue, 1.0).item(), 4)  # ln(1 + (3 + 1/e) / e)
    0.806
    """
    check_pairs(query, key, ids, names=("query", "key"), empty=blockwise.across is not None)
    if (ids is None) != (queue_ids is None):
        raise ValueError("ids and queue_ids go together")
    # In this column all rows of the batch agree, which takes their keys out of each other's denominators.
    of_batch = torch.zeros(len(query), 1, dtype=torch.int64, device=query.device)
    of_queue = torch.ones(len(queue), 1, dtype=torch.int64, device=queue.device)
    if ids is not None and queue_ids is not None:
        of_batch, of_queue = _beside(of_batch, ids), _beside(of_queue, queue_ids)
    negatives = Negatives(queue, ids=of_queue)
    return info_nce(query, key, temperature, ids=of_batch, negatives=negatives, symmetric=False, blockwise=blockwise)


def _beside(marks: Tensor, ids: Tensor) -> Tensor:
    """(N, 1 + C)"""
    return torch.cat([marks, ids[:, None] if ids.ndim == 1 else ids], dim=1)
