"""The triplet loss: of given triplets, and of those that the labels of a batch make."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from mmcl.losses.logits.checks import check_margin
from mmcl.losses.logits.similarity import prepare, similarities

Mining = Literal["batch_hard", "semi_hard", "all"]
"""Which triplets of a batch count, see :func:`mined_triplet`."""


def triplet(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 0.2) -> Tensor:
    r"""Mean hinge on the excess of an anchor's distance to its positive over that to its negative (FaceNet, Schroff et
    al. 2015, arXiv:1503.03832, eq. 3).

    .. math:: \frac{1}{N} \sum_i \max(0, ‖a_i - p_i‖ - ‖a_i - n_i‖ + m)

    FaceNet takes squared distances; distances themselves collapse less easily (Hermans et al. 2017, arXiv:1703.07737,
    section 2), and are what torch's ``TripletMarginLoss`` takes. The embeddings are compared as they are.

    Args:
        anchor: (N, D) embeddings.
        positive: (N, D); row i is the same thing as row i of ``anchor``.
        negative: (N, D); row i is another thing.
        margin: m > 0.

    Returns:
        A scalar; float64 for float64 inputs, else float32. The gradient of a distance that is 0 is 0.

    Raises:
        ValueError: the shapes differ, are not (N, D), N is 0, or ``margin`` is not above 0.

    >>> anchor = torch.zeros(2, 1)
    >>> round(triplet(anchor, anchor + 1, torch.tensor([[1.1], [2.0]])).item(), 4)  # (1 - 1.1 + 0.2) / 2
    0.05
    """
    if anchor.ndim != 2 or not anchor.shape == positive.shape == negative.shape or len(anchor) == 0:
        shapes = ", ".join(str(tuple(x.shape)) for x in (anchor, positive, negative))
        raise ValueError(f"anchor, positive and negative must be (N, D) with N ≥ 1, not {shapes}")
    check_margin(margin)
    with torch.autocast(anchor.device.type, enabled=False):
        anchor, positive, negative = prepare(anchor, positive, negative, similarity="dot")
        near, far = (torch.linalg.vector_norm(anchor - other, dim=1) for other in (positive, negative))
        return (near - far + margin).relu().mean()


def mined_triplet(embeddings: Tensor, labels: Tensor, margin: float = 0.2, *, mining: Mining = "batch_hard") -> Tensor:
    """The triplet loss of a batch: rows of the same label are positives, all others negatives.

    With d(a, x) the Euclidean distance of two rows, the triplets (a, p, n) that count, and what is their mean, are

    - ``batch_hard``: of each anchor the farthest positive and the nearest negative; the mean over all anchors that have
      both (Hermans et al. 2017, arXiv:1703.07737, eq. 5).
    - ``semi_hard``: those with d(a, p) < d(a, n) < d(a, p) + m (Schroff et al. 2015, arXiv:1503.03832, eq. 4). FaceNet
      draws one of them for each pair of anchor and positive; here they all count.
    - ``all``: all that cost something, d(a, n) < d(a, p) + m; the mean over these, which is that over the losses that
      are not 0 (Hermans et al. 2017, eq. 6).

    Time is O(N² log N) and memory O(N²): no list of triplets is made.

    Args:
        embeddings: (N, D), compared as they are.
        labels: (N,) integers.
        margin: m > 0.
        mining: see above.

    Returns:
        A scalar; float64 for float64 inputs, else float32. A batch without such triplets gives 0, with a gradient of 0.

    Raises:
        ValueError: shapes do not fit, ``margin`` is not above 0, or ``mining`` is unknown.

    >>> points = torch.tensor([[0.0], [1.0], [1.1], [3.0]])
    >>> round(mined_triplet(points, torch.tensor([0, 0, 1, 1]), mining="all").item(), 4)  # of 0.1, 1.1, 1, 2 and 0.1
    0.86
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        shapes = f"{tuple(embeddings.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"embeddings and labels must be (N, D) and (N,), not {shapes}")
    check_margin(margin)
    if mining not in get_args(Mining):
        raise ValueError(f"mining must be 'batch_hard', 'semi_hard' or 'all', not {mining!r}")
    with torch.autocast(embeddings.device.type, enabled=False):
        (embeddings,) = prepare(embeddings, similarity="dot")
        distances = -similarities(embeddings, embeddings, "euclidean")  # (N, N)
        same = labels[:, None] == labels[None, :]
        if mining == "batch_hard":
            return _batch_hard(distances, same, margin)
        # Linear in the distances: each counts as often as it stands in a triplet.
        weights, count = _weights(distances.detach(), same, margin, semi_hard=mining == "semi_hard")
        return ((weights * distances).sum() + margin * count) / count.clamp(min=1)


def _batch_hard(distances: Tensor, same: Tensor, margin: float) -> Tensor:
    positive = _without_diagonal(same)
    farthest = distances.masked_fill(~positive, -torch.inf).amax(dim=1)
    nearest = distances.masked_fill(same, torch.inf).amin(dim=1)
    anchors = positive.any(dim=1) & ~same.all(dim=1)
    return (farthest - nearest + margin).relu().sum() / anchors.sum().clamp(min=1)  # 0 for the others: -∞ before


def _weights(distances: Tensor, same: Tensor, margin: float, *, semi_hard: bool) -> tuple[Tensor, Tensor]:
    """How often each distance (N, N) stands in a triplet, less how often as that of a negative; the number of triplets.

    In a row whose negatives are in ascending order, the triplets of one positive have a range of them as negatives.
    """
    positive = _without_diagonal(same)
    ascending, order = distances.masked_fill(same, torch.inf).sort(dim=1)
    stop = torch.searchsorted(ascending, distances + margin)
    start = torch.searchsorted(ascending, distances, right=True) if semi_hard else torch.zeros_like(stop)
    found = (stop - start) * positive
    # Each range begins at its start and is over at its stop; the running sum is the number of ranges around a negative.
    ends = torch.zeros(len(distances), len(distances) + 1, dtype=torch.int64, device=distances.device)
    ends.scatter_add_(1, start, positive.long()).scatter_add_(1, stop, -positive.long())
    ranges = torch.zeros_like(order).scatter_(1, order, ends.cumsum(dim=1)[:, :-1])
    return (found - ranges).to(distances.dtype), found.sum()


def _without_diagonal(mask: Tensor) -> Tensor:
    return mask & ~torch.eye(len(mask), dtype=torch.bool, device=mask.device)
