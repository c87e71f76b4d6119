"""Distillation of the similarities of another model."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.losses.logits.checks import check_pairs, check_temperature, scalar
from mmcl.losses.logits.similarity import prepare, similarities


def distillation(
    query: Tensor,
    key: Tensor,
    teacher_query: Tensor,
    teacher_key: Tensor,
    temperature: float | Tensor,
    teacher_temperature: float | Tensor,
) -> Tensor:
    r"""Mean cross-entropy between a teacher's and the student's distribution over the batch ("affinity mimicking", Wu
    et al. 2023, arXiv:2309.12314; its gradient is that of the divergence in CLIP-KD's relational term, Yang et al.
    2023, arXiv:2307.12732).

    With P the softmax of a query's cosine similarities, divided by the temperature, to all keys of the batch, and Q
    that of a key's to all queries,

    .. math:: -\frac{1}{2N} \sum_{i,j} (P^{teacher}_{ij} \log P_{ij} + Q^{teacher}_{ij} \log Q_{ij})

    Its minimum, which is not zero, is where the two agree. Duplicates need no exception, as the teacher gives them the
    same probability.

    Args:
        query: (N, D) embeddings of the student.
        key: (N, D) embeddings of the student; row i belongs to row i of ``query``.
        teacher_query: (N, E) embeddings of the same queries by the teacher, whose dimension is its own. No gradient
            flows to the teacher.
        teacher_key: (N, E) embeddings of the same keys by the teacher.
        temperature: τ > 0 of the student, a number or a tensor of one element, through which gradient flows.
        teacher_temperature: τ > 0 of the teacher.

    Returns:
        A scalar; float64 for float64 inputs, else float32, in which all sums are accumulated.

    Raises:
        ValueError: shapes do not fit, or a temperature is not one number above 0.

    >>> teacher, student = torch.eye(8), torch.eye(8, 12)
    >>> distillation(student, student, teacher, teacher, 0.07, 0.07).item() < 1e-3
    True
    """
    check_pairs(query, key, names=("query", "key"))
    check_pairs(teacher_query, teacher_key, names=("teacher_query", "teacher_key"))
    if len(teacher_query) != len(query):
        raise ValueError(f"the teacher embeds {len(teacher_query)} rows, the student {len(query)}")
    check_temperature(temperature)
    check_temperature(teacher_temperature, "teacher_temperature")
    with torch.autocast(query.device.type, enabled=False):
        logits = _logits(query, key, temperature)  # (N, N)
        with torch.no_grad():
            targets = _logits(teacher_query, teacher_key, teacher_temperature).to(logits.dtype)
        return (_cross_entropy(logits, targets) + _cross_entropy(logits.T, targets.T)) / 2


def _logits(query: Tensor, key: Tensor, temperature: float | Tensor) -> Tensor:
    query, key = prepare(query, key, similarity="cosine")
    return similarities(query, key, "cosine") / scalar(temperature)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return -(targets.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean()
