"""Distillation against open_clip's loss, and against the divergence it stands for."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mmcl.losses import distillation


def test_value_and_gradients_equal_open_clip():
    from open_clip.loss import DistillClipLoss

    torch.manual_seed(0)
    image, text, teacher_image, teacher_text = torch.randn(4, 24, 16).unbind()
    results = []
    for ours in (True, False):
        a, b = image.clone().requires_grad_(), text.clone().requires_grad_()
        scale = torch.tensor(math.log(1 / 0.07), requires_grad=True)
        if ours:
            loss = distillation(a, b, teacher_image, teacher_text, (-scale).exp(), 0.02)
        else:
            units = (F.normalize(x, dim=1) for x in (teacher_image, teacher_text))
            _, loss = DistillClipLoss()(F.normalize(a, dim=1), F.normalize(b, dim=1), scale.exp(), *units, 1 / 0.02)
        loss.backward()
        results.append((loss.detach(), a.grad, b.grad, scale.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_is_the_divergence_plus_the_entropy_of_the_teacher_in_float64():
    torch.manual_seed(1)
    image, text = torch.randn(2, 7, 4, dtype=torch.float64).unbind()
    teacher_image, teacher_text = torch.randn(2, 7, 9, dtype=torch.float64).unbind()  # another dimension
    student = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T / 0.5
    teacher = F.normalize(teacher_image, dim=1) @ F.normalize(teacher_text, dim=1).T / 0.2
    expected = 0.0
    for mine, theirs in ((student, teacher), (student.T, teacher.T)):
        p = torch.distributions.Categorical(logits=theirs)
        q = torch.distributions.Categorical(logits=mine)
        expected += (torch.distributions.kl_divergence(p, q) + p.entropy()).mean().item() / 2
    got = distillation(image, text, teacher_image, teacher_text, 0.5, 0.2)
    assert got.dtype == torch.float64
    assert got.item() == pytest.approx(expected, rel=1e-12)


def test_gradients_in_float64_and_none_for_the_teacher():
    torch.manual_seed(2)
    image, text = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    teacher = [torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b, t: distillation(a, b, *teacher, t, 0.1), (image, text, tau))
    distillation(image, text, *teacher, tau, 0.1).backward()
    assert teacher[0].grad is None
    assert teacher[1].grad is None


def test_a_student_that_agrees_with_its_teacher_has_no_gradient():
    torch.manual_seed(3)
    teacher = torch.randn(2, 6, 8, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))
    image, text = (teacher @ turn).unbind()  # other embeddings, the same similarities
    image.requires_grad_()
    distillation(image, text, *teacher, 0.05, 0.05).backward()
    torch.testing.assert_close(image.grad, torch.zeros_like(image), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_the_smallest_temperature_and_accumulated_in_float32(dtype):
    torch.manual_seed(4)
    x = torch.randn(64, 16).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = distillation(x, -x.detach(), x, x, 0.01, 0.01)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss > 90
    assert torch.isfinite(x.grad).all()


def test_arguments_that_do_not_fit_are_named():
    three, four = torch.randn(3, 4), torch.randn(4, 4)
    with pytest.raises(ValueError, match="query and key"):
        distillation(three, four, three, three, 0.1, 0.1)
    with pytest.raises(ValueError, match="teacher_query and teacher_key"):
        distillation(three, three, three, four, 0.1, 0.1)
    with pytest.raises(ValueError, match="the teacher embeds 4 rows, the student 3"):
        distillation(three, three, four, four, 0.1, 0.1)
    with pytest.raises(ValueError, match="teacher_temperature"):
        distillation(three, three, three, three, 0.1, torch.ones(2))


@pytest.mark.parametrize(
    ("student", "teacher", "name"), [(0.0, 0.1, "temperature"), (0.1, -1.0, "teacher_temperature")]
)
def test_a_temperature_that_is_none_is_refused(student, teacher, name):
    x = torch.eye(4)
    with pytest.raises(ValueError, match=f"^{name} must be above 0"):
        distillation(x, x, x, x, student, teacher)
