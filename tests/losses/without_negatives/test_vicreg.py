"""VICReg against the equations in float64, and against lightly and pytorch-metric-learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmcl.losses import vicreg, vicreg_terms

WEIGHTS = [(25.0, 25.0, 1.0), (1.0, 2.0, 3.0)]


def views(scale=0.7):
    torch.manual_seed(0)
    return [(scale * torch.randn(9, 5, dtype=torch.float64)).requires_grad_() for _ in range(2)]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_equals_the_equations_in_float64(weights):
    a, b = (view.detach().numpy() for view in views())
    (n, d), variance, covariance = a.shape, 0.0, 0.0
    for z in (a, b):
        c = sum(np.outer(row, row) for row in z - z.mean(axis=0)) / (n - 1)
        variance += sum(max(0.0, 1 - np.sqrt(c[j, j] + 1e-4)) for j in range(d)) / d
        covariance += sum(c[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    # As the authors' code has it: the invariance over D, and half of both variances.
    invariance = sum(((x - y) ** 2).sum() for x, y in zip(a, b, strict=True)) / n
    expected = np.dot(weights, (invariance / d, variance / 2, covariance))
    assert vicreg(torch.tensor(a), torch.tensor(b), *weights).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(lambda x, y: vicreg(x, y, *weights), views())


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("library", ["lightly.loss", "pytorch_metric_learning.losses"])
def test_value_and_gradient_equal_those_of_the_libraries(library, weights):
    module, (a, b) = pytest.importorskip(library), views()
    loss = module.VICRegLoss(*weights)
    theirs = loss(a, b) if library.startswith("lightly") else loss(a, ref_emb=b)
    ours = vicreg(a, b, *weights)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    for mine, other in zip(torch.autograd.grad(ours, (a, b)), torch.autograd.grad(theirs, (a, b)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)


def test_rows_that_are_all_alike_have_a_finite_gradient():
    a = torch.ones(4, 3, requires_grad=True)
    terms = vicreg_terms(a, a)
    assert [term.item() for term in terms] == pytest.approx([0.0, 0.99, 0.0])
    assert torch.autograd.grad(vicreg(a, a), a)[0].isfinite().all()


def test_accumulated_in_float32_within_autocast():
    torch.manual_seed(1)
    a, b = torch.randn(2, 16, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        inside = vicreg(a, b)
    assert inside.dtype == torch.float32
    assert inside.item() == pytest.approx(vicreg(a.double(), b.double()).item(), rel=1e-5)


def test_arguments_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"a and b .*\(3, 4\) and \(2, 4\)"):
        vicreg(torch.ones(3, 4), torch.ones(2, 4))
    with pytest.raises(ValueError, match="two rows or more"):
        vicreg(torch.ones(1, 4), torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"weights must be 0 or more, not 25.0, -1, 1.0"):
        vicreg(torch.ones(3, 4), torch.ones(3, 4), variance_weight=-1)
    with pytest.raises(ValueError, match="epsilon must be 0 or more, not -1"):
        vicreg(torch.ones(3, 4), torch.ones(3, 4), epsilon=-1)
