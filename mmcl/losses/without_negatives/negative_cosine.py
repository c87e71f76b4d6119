"""The negative cosine similarity of BYOL and SimSiam."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.losses.logits.checks import check_pairs
from mmcl.losses.logits.similarity import prepare


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    r"""Mean negative cosine similarity of predictions and targets (SimSiam, Chen & He 2020, arXiv:2011.10566, eq. 1).

    .. math:: -\frac{1}{N} \sum_i \frac{p_i}{‖p_i‖} \cdot \frac{z_i}{‖z_i‖}

    BYOL's loss of one direction, the squared distance of the unit vectors (Grill et al. 2020, arXiv:2006.07733,
    eq. 2), is 2 + 2 times this. Gradient flows to both arguments: pass ``target.detach()`` where the target is to get
    none, as in both papers.

    Args:
        prediction: (N, D) output of the predictor for one view.
        target: (N, D) projection of the other view; row i belongs to row i of ``prediction``.

    Returns:
        A scalar in [-1, 1]; float64 for float64 inputs, else float32, in which all sums are accumulated.

    Raises:
        ValueError: the shapes differ, are not (N, D), or N is 0.

    >>> view = torch.eye(4)
    >>> negative_cosine(view, view).item()
    -1.0
    """
    check_pairs(prediction, target, names=("prediction", "target"))
    with torch.autocast(prediction.device.type, enabled=False):
        prediction, target = prepare(prediction, target, similarity="cosine")
        return -(prediction * target).sum(dim=1).mean()
