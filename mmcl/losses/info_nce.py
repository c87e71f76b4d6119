"""InfoNCE, the contrastive cross-entropy over a batch of pairs."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Similarity = Literal["cosine", "dot", "euclidean"]


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
        negative_ids: (M,) or (M, K) integers, to go with ``ids``: a further key that agrees with a query in any column
            is the same thing, and leaves that query's denominator.
        symmetric: average with the direction from key to query.
        similarity: ``cosine``, ``dot``, or ``euclidean`` (the negative distance).

    Returns:
        A scalar; float64 for float64 inputs, else float32, in which all sums are accumulated.

    Raises:
        ValueError: shapes do not fit, or ``similarity`` is none of the three.

    >>> image = torch.eye(8)
    >>> info_nce(image, image).item() < 1e-4  # every image is nearest to its own text
    True
    """
    _check(query, key, ids, negatives)
    if negative_ids is not None and (ids is None or negatives is None or len(negative_ids) != len(negatives)):
        raise ValueError("negative_ids go with ids, and there is one for each of the negatives")
    if torch.is_tensor(temperature) and temperature.numel() != 1:
        raise ValueError(f"temperature must be one number, not a tensor of shape {tuple(temperature.shape)}")
    with torch.autocast(query.device.type, enabled=False):
        query, key, negatives = _prepare(query, key, negatives, similarity)
        logits = _similarity(query, key, similarity) / temperature  # (N, N)
        if ids is not None:
            logits = logits.masked_fill(_repeats(ids), -torch.inf)
        partners = torch.arange(len(logits), device=logits.device)
        backward = F.cross_entropy(logits.T, partners) if symmetric else None
        if negatives is not None:
            further = _similarity(query, negatives, similarity) / temperature  # (N, M)
            if ids is not None and negative_ids is not None:
                further = further.masked_fill(_same(ids, negative_ids), -torch.inf)
            logits = torch.cat([logits, further], dim=1)
        forward = F.cross_entropy(logits, partners)
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
    _check(query, key, ids, None)
    with torch.autocast(query.device.type, enabled=False):
        query, key, _ = _prepare(query, key, None, similarity)
        scores = _similarity(query, key, similarity)
        partner = scores.diagonal().clone()
        scores.fill_diagonal_(-torch.inf)
        if ids is not None:
            scores = scores.masked_fill(_repeats(ids), -torch.inf)
        return (partner > scores.amax(dim=1)).float().mean()


def _check(query: Tensor, key: Tensor, ids: Tensor | None, negatives: Tensor | None) -> None:
    if query.ndim != 2 or query.shape != key.shape or len(query) == 0:
        raise ValueError(f"query and key must be (N, D) with N ≥ 1, not {tuple(query.shape)} and {tuple(key.shape)}")
    if ids is not None and (ids.ndim not in (1, 2) or len(ids) != len(query)):
        raise ValueError(f"ids must be ({len(query)},) or ({len(query)}, K), not {tuple(ids.shape)}")
    if negatives is not None and (negatives.ndim != 2 or negatives.shape[1] != query.shape[1]):
        raise ValueError(f"negatives must be (M, {query.shape[1]}), not {tuple(negatives.shape)}")


def _prepare(
    query: Tensor, key: Tensor, negatives: Tensor | None, similarity: Similarity
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Raise half precision to float32, and give unit length where the similarity asks for it."""
    dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), torch.float32)

    def ready(x: Tensor) -> Tensor:
        x = x.to(dtype)
        return F.normalize(x, dim=1) if similarity == "cosine" else x

    return ready(query), ready(key), None if negatives is None else ready(negatives)


def _similarity(a: Tensor, b: Tensor, similarity: Similarity) -> Tensor:
    if similarity in ("cosine", "dot"):
        return a @ b.T
    if similarity == "euclidean":
        # The short cut through |a|² + |b|² - 2ab cancels for the close pairs, which matter most here.
        return -torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    raise ValueError(f"similarity must be 'cosine', 'dot' or 'euclidean', not {similarity!r}")


def _repeats(ids: Tensor) -> Tensor:
    """(N, N) true where two different rows are the same thing."""
    return _same(ids, ids).fill_diagonal_(False)


def _same(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) true where row i of ``a`` and row j of ``b`` agree in any column."""
    a, b = (ids[:, None] if ids.ndim == 1 else ids for ids in (a, b))
    return (a[:, None, :] == b[None, :, :]).any(dim=2)
