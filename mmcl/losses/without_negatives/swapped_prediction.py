"""The swapped prediction of SwAV, and the Sinkhorn-Knopp algorithm that makes its targets."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.losses.logits.checks import check_temperature, scalar


def swapped_prediction(scores: Tensor, assignments: Tensor, temperature: float | Tensor = 0.1) -> Tensor:
    r"""Mean cross-entropy between the assignment of one view and the prediction of each other view of the same row
    (SwAV, Caron et al. 2020, arXiv:2006.09882, eq. 2 and, with several crops, eq. 6).

    With q the assignments, and p the softmax of the scores divided by the temperature,

    .. math:: -\frac{1}{G (V - 1) N} \sum_{g=1}^{G} \sum_{v \neq g} \sum_{i,k} q_{gik} \log p_{vik}

    Args:
        scores: (V, N, K) inner products of V views of N rows with K prototypes, unit vectors all.
        assignments: (G, N, K) of the first G ≤ V views, as from :func:`sinkhorn`; each row sums to 1. No gradient
            flows to them. With two global and four local crops G is 2 and V is 6.
        temperature: τ > 0, a number or a tensor of one element, through which gradient flows.

    Returns:
        A scalar; float64 for float64 inputs, else float32, in which all sums are accumulated.

    Raises:
        ValueError: shapes do not fit, there is but one view, or ``temperature`` is not one number above 0.

    >>> scores = torch.eye(4).expand(2, 4, 4)  # each row, in both views, is nearest to a prototype of its own
    >>> loss = swapped_prediction(scores, sinkhorn(scores), 0.1)
    >>> round(loss.item(), 3)
    0.0
    """
    if scores.ndim != 3 or len(scores) < 2 or scores[0].numel() == 0:
        raise ValueError(f"scores must be (V, N, K) of at least two views, not {tuple(scores.shape)}")
    if assignments.ndim != 3 or assignments.shape[1:] != scores.shape[1:]:
        shapes = f"{tuple(assignments.shape)} beside {tuple(scores.shape)}"
        raise ValueError(f"assignments must be (G, N, K) with the N and K of the scores, not {shapes}")
    if not 1 <= len(assignments) <= len(scores):
        raise ValueError(f"there must be assignments of 1 to {len(scores)} views, not of {len(assignments)}")
    check_temperature(temperature)
    with torch.autocast(scores.device.type, enabled=False):
        log_p = (_full_precision(scores) / scalar(temperature)).log_softmax(dim=2)
        targets = assignments.detach().to(log_p)
        losses = -torch.einsum("gik,vik->gv", targets, log_p) / scores.shape[1]  # of view v with the targets of view g
        own = torch.eye(*losses.shape, dtype=torch.bool, device=losses.device)
        return losses.masked_fill(own, 0).sum() / (losses.numel() - len(losses))


@torch.no_grad()
def sinkhorn(scores: Tensor, iterations: int = 3, epsilon: float = 0.05) -> Tensor:
    r"""Assignments of rows to prototypes under which all prototypes are used alike (SwAV, Caron et al. 2020,
    arXiv:2006.09882, eq. 3 to 5; the algorithm is Sinkhorn's and Knopp's, Cuturi 2013, arXiv:1306.0895).

    Starting from exp(scores / ε), each iteration divides every column by its sum, so that the prototypes have equal
    shares of the rows, and then every row by its sum. It is computed with logarithms, which neither overflow nor
    underflow. The batch is what is passed: on several processes pass the scores of the global batch, gathered, for the
    sums over rows are not exchanged between processes.

    Args:
        scores: (…, N, K) inner products of N rows with K prototypes; leading dimensions are independent problems, such
            as views. Where a queue gives more rows, concatenate them to the N and drop their assignments.
        iterations: at least 1. The rows sum to 1 after any number, the columns to N / K in the limit.
        epsilon: ε > 0, the weight of the entropy; smaller values give harder assignments.

    Returns:
        (…, N, K) probabilities, each row of which sums to 1; float64 for float64 scores, else float32. No gradient
        flows through them.

    Raises:
        ValueError: ``scores`` has fewer than two dimensions, ``iterations`` is below 1 or ``epsilon`` not above 0.

    >>> sinkhorn(torch.tensor([[1.0, 0.0], [1.0, 0.9]])).argmax(dim=1)  # both would take the first
    tensor([0, 1])
    """
    if scores.ndim < 2:
        raise ValueError(f"scores must be (…, N, K), not {tuple(scores.shape)}")
    if iterations < 1:
        raise ValueError(f"iterations must be 1 or more, not {iterations}")
    if not epsilon > 0.0:
        raise ValueError(f"epsilon must be above 0, not {epsilon}")
    log_q = _full_precision(scores) / epsilon
    for _ in range(iterations):
        log_q = log_q.log_softmax(dim=-2)
        log_q = log_q.log_softmax(dim=-1)
    return log_q.exp()


def _full_precision(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
