"""InfoNCE, the contrastive cross-entropy over a batch of pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.losses.candidates import Guide, candidate_logits
from mmcl.losses.pairs import Similarity


def info_nce(
    query: Tensor,
    key: Tensor,
    temperature: float | Tensor = 0.07,
    *,
    ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    negatives: Tensor | None = None,
    negative_ids: Tensor | None = None,
    negative_owner: Tensor | None = None,
    own_weight: float = 1.0,
    guide: Guide | None = None,
    symmetric: bool = True,
    similarity: Similarity = "cosine",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Mean cross-entropy of telling each row's partner from all other rows (van den Oord et al. 2018,
    arXiv:1807.03748, eq. 4; symmetric as in CLIP, Radford et al. 2021, arXiv:2103.00020, fig. 3; with hard negatives
    as in SimCSE, Gao et al. 2021, arXiv:2104.08821, eq. 5 and, with their weight, its appendix).

    With s the similarity and τ the temperature, row i of ``query`` contributes

    .. math:: -\log \frac{\exp(s(q_i, k_i) / τ)}
              {\sum_{j \in A(i)} \exp(s(q_i, k_j) / τ) + \sum_{m \in B(i)} α_{im} \exp(s(q_i, n_m) / τ)}

    where A(i) holds i itself and every j that is not the same thing as i, B(i) the further negatives that are not the
    same thing as i, and α_im is ``own_weight`` for the row's own hard negatives and 1 for all others. A guide takes
    more out of A(i) and B(i).

    Args:
        query: (N, D) embeddings.
        key: (N, D) embeddings; row i belongs to row i of ``query``.
        temperature: τ > 0, a number or a tensor of one element, through which gradient flows.
        ids: (N,) or (N, K) integers. Rows that agree in any of the K columns are the same thing: they are never each
            other's negatives, and leave the denominator.
        key_ids: the same of the keys, where it is not what the queries have: query i and key j are the same thing if
            row i of ``ids`` and row j of ``key_ids`` agree in any column. For texts a paired with texts p, ``ids`` of
            (a, a, p, p) and ``key_ids`` of (a, p, a, p) keep apart whatever shares a text.
        negatives: (M, D) further keys, wrong for every query. They have no partner, so they enter the direction from
            query to key alone.
        negative_ids: (M,) or (M, K) integers, as ``key_ids``: what is the same thing as a query leaves its denominator.
        negative_owner: (M,) integers: the row whose hard negative it is.
        own_weight: α > 0, how much a row's own hard negatives count in its denominator. SimCSE's code takes ln α.
        guide: what another model makes of the same things, by which negatives that are too close are left out, in both
            directions. GISTEmbed itself compares queries with queries and keys with keys besides.
        symmetric: average with the direction from key to query.
        similarity: ``cosine``, ``dot``, or ``euclidean`` (the negative distance).
        label_smoothing: share of the target spread evenly over what is in the denominator (arXiv:1512.00567, sec. 7).

    Returns:
        A scalar; float64 for float64 inputs, else float32, in which all sums are accumulated.

    Raises:
        ValueError: shapes do not fit, arguments that belong together are not, ``similarity`` is none of the three, or
            ``label_smoothing`` not in [0, 1).

    >>> image = torch.eye(8)
    >>> info_nce(image, image).item() < 1e-4  # every image is nearest to its own text
    True
    """
    with torch.autocast(query.device.type, enabled=False):
        directions = candidate_logits(
            query,
            key,
            temperature,
            ids=ids,
            key_ids=key_ids,
            negatives=negatives,
            negative_ids=negative_ids,
            negative_owner=negative_owner,
            own_weight=own_weight,
            guide=guide,
            symmetric=symmetric,
            similarity=similarity,
        )
        losses = [_cross_entropy(logits, label_smoothing) for logits in directions]
        return torch.stack(losses).mean()


@torch.no_grad()
def batch_accuracy(
    query: Tensor,
    key: Tensor,
    *,
    ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    similarity: Similarity = "cosine",
) -> Tensor:
    """Share of rows, in [0, 1], whose partner is strictly the most similar of the batch's keys.

    Args:
        query: (N, D) embeddings.
        key: (N, D) embeddings; row i belongs to row i of ``query``.
        ids: as in :func:`info_nce`; rows that are the same thing do not compete.
        key_ids: as in :func:`info_nce`.
        similarity: as in :func:`info_nce`.

    Raises:
        ValueError: shapes do not fit, or ``similarity`` is unknown.
    """
    with torch.autocast(query.device.type, enabled=False):
        (scores,) = candidate_logits(query, key, 1.0, ids=ids, key_ids=key_ids, symmetric=False, similarity=similarity)
        partner = scores.diagonal()
        others = scores.clone().fill_diagonal_(-torch.inf)
        return (partner > others.amax(dim=1)).float().mean()


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
