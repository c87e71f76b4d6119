"""The self-distillation of DINO."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.losses.logits.checks import check_temperature, scalar
from mmcl.losses.without_negatives.swapped_prediction import swapped_prediction


def dino(
    student: Tensor,
    teacher: Tensor,
    centre: Tensor,
    student_temperature: float | Tensor = 0.1,
    teacher_temperature: float | Tensor = 0.04,
) -> Tensor:
    r"""Mean cross-entropy between the teacher's distribution of one view and the student's of each other view of the
    same row (DINO, Caron et al. 2021, arXiv:2104.14294, eq. 3 and algorithm 1).

    With p the softmax of the student's scores over τ_s, and q that of the teacher's scores less the centre c over τ_t,

    .. math:: -\frac{1}{G (V - 1) N} \sum_{g=1}^{G} \sum_{v \neq g} \sum_{i,k} q_{gik} \log p_{vik}

    Centering keeps one dimension from dominating, and the low τ_t all from becoming alike.

    Args:
        student: (V, N, K) scores of V views of N rows.
        teacher: (G, N, K) scores of the first G ≤ V views. No gradient flows to them.
        centre: (K,) running mean of the teacher's scores.
        student_temperature: τ_s > 0.
        teacher_temperature: τ_t > 0.

    Returns:
        A scalar; float64 for float64 inputs, else float32, in which all sums are accumulated.

    Raises:
        ValueError: shapes do not fit, there is but one view, or a temperature is not one number above 0.

    >>> scores = torch.eye(4).expand(2, 4, 4)  # the views of each row agree, and no two rows do
    >>> round(dino(scores, scores, centre=torch.full((4,), 0.25)).item(), 3)
    0.0
    """
    check_temperature(teacher_temperature)
    if centre.shape != teacher.shape[-1:]:
        raise ValueError(f"centre must be ({teacher.shape[-1]},) as the scores are, not {tuple(centre.shape)}")
    with torch.autocast(student.device.type, enabled=False):
        centred = teacher.detach().to(torch.promote_types(teacher.dtype, torch.float32)) - centre
        targets = (centred / scalar(teacher_temperature)).softmax(dim=-1)
        return swapped_prediction(student, targets, student_temperature)
