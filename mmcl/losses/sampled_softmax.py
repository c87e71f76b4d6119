"""The softmax over a whole catalogue, from the items of a batch, which stand there as often as they are popular."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.losses.blockwise.plan import DEFAULT, Blockwise, as_number
from mmcl.losses.info_nce import info_nce
from mmcl.losses.logits.candidates import Ids
from mmcl.losses.logits.checks import check_pairs, check_temperature
from mmcl.losses.logits.similarity import prepare


def sampled_softmax(
    query: Tensor,
    key: Tensor,
    log_probability: Tensor,
    temperature: float | Tensor = 0.07,
    *,
    ids: Ids | None = None,
    blockwise: Blockwise = DEFAULT,
) -> Tensor:
    r"""InfoNCE whose logits are corrected for how often each key is drawn into a batch (Yi et al. 2019, *Sampling-bias-
    corrected neural modeling for large corpus item recommendations*, doi:10.1145/3298689.3346996, eq. 5; Bengio and
    Senécal 2008). With s the cosine, τ the temperature and p_j the probability of key j, query i contributes

    .. math:: -\log \frac{\exp(s(q_i, k_i) / τ - \log p_i)}{\sum_{j \in A(i)} \exp(s(q_i, k_j) / τ - \log p_j)}

    where A(i) holds i and every j that is no duplicate of i. Without the correction popular items, which are negatives
    more often than others, would be pushed away from everybody.

    Args:
        query: (N, D) embeddings.
        key: (N, D) embeddings; row i is the positive of row i of ``query``.
        log_probability: (N,) ln p of each key, up to a constant; no gradient flows to it.
        temperature: τ > 0, a number or a tensor of one element, through which gradient flows.
        ids: as in :func:`~mmcl.losses.info_nce`.
        blockwise: as in :func:`~mmcl.losses.info_nce`.

    Returns:
        A scalar; float64 for float64 inputs, else float32, in which all sums are accumulated.

    Raises:
        ValueError: shapes or arguments do not fit together, or are out of range.

    >>> user, item = torch.eye(8), torch.eye(8)
    >>> sampled_softmax(user, item, torch.full((8,), 0.125).log()).item() < 1e-4  # equally popular: as InfoNCE
    True
    """
    check_pairs(query, key, names=("query", "key"), empty=blockwise.across is not None)
    check_temperature(temperature)
    if log_probability.shape != (len(key),):
        raise ValueError(f"log_probability must be ({len(key)},), not {tuple(log_probability.shape)}")
    with torch.autocast(query.device.type, enabled=False):
        query, key = prepare(query, key, similarity="cosine")
        # (q, 1)·(k, -τ ln p) / τ = q·k / τ - ln p: a product like any other, in tiles and over processes.
        bias = -as_number(temperature, key) * log_probability.detach().to(key)
        query = torch.cat([query, query.new_ones(len(query), 1)], dim=1)
        key = torch.cat([key, bias[:, None]], dim=1)
        return info_nce(query, key, temperature, ids=ids, symmetric=False, similarity="dot", blockwise=blockwise)
