"""InfoNCE, the contrastive cross-entropy over a batch of pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.losses.pairs import Similarity, check_number, check_pairs, prepare, repeats, same, similarities


def info_nce(
    query: Tensor,
    key: Tensor,
    temperature: float | Tensor = 0.07,
    *,
    ids: Tensor | None = None,
    negatives: Tensor | None = None,
    negative_ids: Tensor | None = None,
    symmetric: bool = True,
    similarity: Similarity = "cosine",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Mean cross-entropy of telling each row's partner from all other rows (van den Oord et al. 2018,
    arXiv:1807.03748, eq. 4; symmetric as in CLIP, Radford et al. 2021, arXiv:2103.00020, fig. 3).

    With s the similarity and τ the temperature, row i of ``query`` contributes

    .. math:: -\log \frac{\exp(s(q_i, k_i) / τ)}{\sum_{j \in A(i)} \exp(s(q_i, k_j) / τ) + \sum_m \exp(s(q_i, n_m) / τ)}

    where A(i) holds i itself and every j that is not the same thing as i.

    Args:
        query: (N, D) embeddings.
        key: (N, D) embeddings; row i belongs to row i of ``query``.
        temperature: τ > 0, a number or a tensor of one element, through which gradient flows.
        ids: (N,) or (N, K) integers. Rows that agree in any of the K columns are the same thing: they are never each
            other's negatives, and leave the denominator.
        negatives: (M, D) further keys, wrong for every query. They have no partner, so they enter the direction from
            query to key alone.
        negative_ids: (M,) or (M, K) integers, as ``ids``: what is the same thing as a query leaves its denominator.
        symmetric: average with the direction from key to query.
        similarity: ``cosine``, ``dot``, or ``euclidean`` (the negative distance).
        label_smoothing: share of the target spread evenly over what is in the denominator (arXiv:1512.00567, sec. 7).

    Returns:
        A scalar; float64 for float64 inputs, else float32, in which all sums are accumulated.

    Raises:
        ValueError: shapes do not fit, ``similarity`` is none of the three, or ``label_smoothing`` not in [0, 1).

    >>> image = torch.eye(8)
    >>> info_nce(image, image).item() < 1e-4  # every image is nearest to its own text
    True
    """
    _check(query, key, ids, negatives, negative_ids)
    check_number(temperature, "temperature")
    with torch.autocast(query.device.type, enabled=False):
        given = [query, key] if negatives is None else [query, key, negatives]
        query, key, *further = prepare(*given, similarity=similarity)
        logits = similarities(query, key, similarity) / temperature  # (N, N)
        if ids is not None:
            logits = logits.masked_fill(repeats(ids), -torch.inf)
        backward = _cross_entropy(logits.T, label_smoothing) if symmetric else None
        if negatives is not None:
            wrong = similarities(query, further[0], similarity) / temperature  # (N, M)
            if ids is not None and negative_ids is not None:
                wrong = wrong.masked_fill(same(ids, negative_ids), -torch.inf)
            logits = torch.cat([logits, wrong], dim=1)
        forward = _cross_entropy(logits, label_smoothing)
        return forward if backward is None else (forward + backward) / 2


@torch.no_grad()
def batch_accuracy(
    query: Tensor, key: Tensor, *, ids: Tensor | None = None, similarity: Similarity = "cosine"
) -> Tensor:
    """Share of rows, in [0, 1], whose partner is strictly the most similar of the batch's keys.

    Args:
        query: (N, D) embeddings.
        key: (N, D) embeddings; row i belongs to row i of ``query``.
        ids: as in :func:`info_nce`; rows that are the same thing do not compete.
        similarity: as in :func:`info_nce`.

    Raises:
        ValueError: shapes do not fit, or ``similarity`` is unknown.
    """
    _check(query, key, ids)
    with torch.autocast(query.device.type, enabled=False):
        query, key = prepare(query, key, similarity=similarity)
        scores = similarities(query, key, similarity)
        partner = scores.diagonal().clone()
        scores.fill_diagonal_(-torch.inf)
        if ids is not None:
            scores = scores.masked_fill(repeats(ids), -torch.inf)
        return (partner > scores.amax(dim=1)).float().mean()


def _check(
    query: Tensor,
    key: Tensor,
    ids: Tensor | None,
    negatives: Tensor | None = None,
    negative_ids: Tensor | None = None,
) -> None:
    check_pairs(query, key, ids, names=("query", "key"))
    if negatives is not None and (negatives.ndim != 2 or negatives.shape[1] != query.shape[1]):
        raise ValueError(f"negatives must be (M, {query.shape[1]}), not {tuple(negatives.shape)}")
    if negative_ids is not None and (ids is None or negatives is None or len(negative_ids) != len(negatives)):
        raise ValueError("negative_ids go with ids, and there is one for each of the negatives")


def _cross_entropy(logits: Tensor, label_smoothing: float) -> Tensor:
    """Mean over the rows of (N, M) logits, of which row i has its partner in column i; -∞ is no candidate."""
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1), not {label_smoothing}")
    log_p = logits.log_softmax(dim=1)
    gain = log_p.diagonal()
    if label_smoothing > 0.0:
        # F.cross_entropy would spread the target over what is no candidate, and give infinity.
        absent = logits.isneginf()
        even = log_p.masked_fill(absent, 0.0).sum(dim=1) / (~absent).sum(dim=1)
        gain = (1 - label_smoothing) * gain + label_smoothing * even
    return -gain.mean()
