"""The negative cosine against the equation in float64, and BYOL's squared distance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmcl.losses import negative_cosine


@pytest.mark.parametrize("n", [1, 7])
def test_equals_the_equation_in_float64(n):
    rng = np.random.default_rng(0)
    p, z = rng.normal(size=(n, 5)), rng.normal(size=(n, 5))
    expected = -np.mean([a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in zip(p, z, strict=True)])
    assert negative_cosine(torch.tensor(p), torch.tensor(z)).item() == pytest.approx(expected, rel=1e-12)


def test_twice_it_plus_two_is_byol_s_squared_distance():
    torch.manual_seed(0)
    p, z = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    ours = 2 + 2 * negative_cosine(p, z)
    theirs = (F.normalize(p, dim=1) - F.normalize(z, dim=1)).square().sum(dim=1).mean()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, p)[0] for loss in (ours, theirs)))


def test_gradient_flows_to_both_arguments_in_float64():
    torch.manual_seed(1)
    p, z = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(negative_cosine, (p, z))


def test_accumulated_in_float32_within_autocast():
    torch.manual_seed(2)
    p = torch.randn(8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = negative_cosine(p.bfloat16(), p.bfloat16())
    assert inside.dtype == torch.float32
    assert inside.item() == pytest.approx(-1.0, abs=1e-6)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"prediction and target .*\(3, 4\)"):
        negative_cosine(torch.randn(3, 4), torch.randn(2, 4))
