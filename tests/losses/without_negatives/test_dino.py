"""DINO's loss against the equation in float64, and lightly's with centre and gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmcl.losses import dino


def softmax(scores, tau):
    powers = [math.exp(score / tau) for score in scores]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize(("views", "targets"), [(2, 2), (5, 2), (3, 1)])
def test_equals_the_equation_in_float64(views, targets):
    rng = np.random.default_rng(0)
    student, teacher, centre = (
        rng.uniform(-1, 1, (views, 4, 6)),
        rng.uniform(-1, 1, (targets, 4, 6)),
        rng.normal(size=6),
    )
    total, count = 0.0, 0
    for g in range(targets):
        for v in range(views):
            for i in range(4) if v != g else ():
                q, p = softmax(teacher[g, i] - centre, 0.05), softmax(student[v, i], 0.2)
                total -= sum(a * math.log(b) for a, b in zip(q, p, strict=True))
                count += 1
    got = dino(*map(torch.tensor, (student, teacher, centre)), 0.2, 0.05)
    assert got.item() == pytest.approx(total / count, rel=1e-10)


def test_value_and_gradient_equal_lightly_s():
    loss = pytest.importorskip("lightly.loss").DINOLoss(output_dim=7, teacher_temp=0.05, student_temp=0.1)
    torch.manual_seed(0)
    student, teacher = torch.rand(5, 8, 7, requires_grad=True), torch.rand(2, 8, 7)
    loss.center.copy_(torch.randn(7))
    ours = dino(student, teacher, loss.center.flatten().clone(), 0.1, 0.05)
    theirs = loss([*teacher], [*student])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in (ours, theirs)))


def test_gradient_flows_to_the_student_alone():
    torch.manual_seed(1)
    student, teacher = (torch.rand(3, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    centre = torch.rand(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda scores: dino(scores, teacher[:2], centre), student)
    assert torch.autograd.grad(dino(student, teacher[:2], centre), teacher, allow_unused=True) == (None,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_at_the_smallest_temperatures_and_accumulated_in_float32(dtype):
    student = (torch.eye(4) * 2 - 1).expand(3, 4, 4).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = dino(student, -student[:2], torch.zeros(4), 0.01, 1e-3)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_arguments_that_do_not_fit_are_named():
    scores = torch.rand(2, 3, 4)
    with pytest.raises(ValueError, match=r"centre must be \(4,\)"):
        dino(scores, scores, torch.zeros(3))
    with pytest.raises(ValueError, match="at least two views"):
        dino(scores[:1], scores[:1], torch.zeros(4))
    with pytest.raises(ValueError, match="temperature must be above 0"):
        dino(scores, scores, torch.zeros(4), 0.1, 0.0)
