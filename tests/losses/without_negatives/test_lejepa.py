"""LeJEPA's two terms against the integral in float64 and lightly's, and what they are least for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from mmcl.losses import centre_prediction, sigreg


def epps_pulley(x, limit):
    """The statistic of a sample, by adaptive quadrature."""

    def integrand(t):
        return abs(np.exp(1j * t * x).mean() - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2)

    return len(x) * quad(integrand, -limit, limit, epsabs=1e-12)[0]


@pytest.mark.parametrize("limit", [3.0, 5.0])
def test_sigreg_is_the_mean_of_the_statistics_of_the_projections(limit):
    rng = np.random.default_rng(0)
    views, directions = rng.normal(0.3, 2.0, size=(2, 7, 3)), rng.normal(size=(3, 4))
    unit = directions / np.linalg.norm(directions, axis=0)
    expected = np.mean([epps_pulley(view @ a, limit) for view in views for a in unit.T])
    got = sigreg(torch.tensor(views), torch.tensor(directions), limit=limit, knots=2001)
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_values_and_gradients_equal_lightly_s(monkeypatch):
    loss = pytest.importorskip("lightly.loss").LeJEPALoss(lambda_param=0.05, sigreg_num_vectors=16)
    torch.manual_seed(0)
    views, directions = torch.randn(5, 8, 4, requires_grad=True), torch.randn(4, 16)
    monkeypatch.setattr(
        type(loss.sigreg), "_generate_unit_vectors", lambda *_, **__: directions / directions.norm(dim=0)
    )
    ours = 0.95 * centre_prediction(views) + 0.05 * sigreg(views, directions)
    theirs = loss(global_proj=views[:2], local_proj=views[2:])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(value, views)[0] for value in (ours, theirs)))


def test_gradients_in_float64():
    torch.manual_seed(1)
    views, directions = torch.randn(3, 4, 3, dtype=torch.float64, requires_grad=True), torch.randn(3, 5)
    assert torch.autograd.gradcheck(lambda v: sigreg(v, directions), views)
    assert torch.autograd.gradcheck(centre_prediction, views)


@pytest.mark.parametrize("rows", [2, 100])
def test_gaussian_samples_of_any_size_have_the_statistic_s_expectation(rows):
    torch.manual_seed(2)
    variance = quad(lambda t: (1 - np.exp(-(t**2))) * np.exp(-(t**2) / 2), -3, 3)[0]  # of the mean, times N: 1.05
    assert sigreg(torch.randn(4000, rows, 1), torch.ones(1, 1)).item() == pytest.approx(variance, rel=0.05)


def test_distributions_with_the_moments_of_a_gaussian_are_told_from_it():
    torch.manual_seed(2)
    samples = (
        torch.randn(1, 5000, 1),
        (torch.rand(1, 5000, 1) - 0.5) * 12**0.5,
        torch.randint(0, 2, (1, 5000, 1)) * 2.0 - 1,
    )
    values = [sigreg(views, torch.ones(1, 1)).item() for views in samples]
    assert 10 * values[0] < values[1] < values[2] / 2


def test_accumulated_in_float32_within_autocast():
    torch.manual_seed(3)
    views, directions = torch.randn(2, 32, 8).bfloat16(), torch.randn(8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = sigreg(views, directions), centre_prediction(views)
    for value, loss in zip(
        inside, (sigreg(views.double(), directions), centre_prediction(views.double())), strict=True
    ):
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(loss.item(), rel=1e-4)


def test_arguments_that_do_not_fit_are_named():
    views = torch.rand(2, 3, 4)
    with pytest.raises(ValueError, match=r"\(V, N, D\) of at least one row and \(D, M\), not \(2, 3, 4\) and \(3, 5\)"):
        sigreg(views, torch.rand(3, 5))
    with pytest.raises(ValueError, match="limit must be above 0 and knots 2 or more"):
        sigreg(views, torch.rand(4, 5), knots=1)
    with pytest.raises(ValueError, match="global_views must be 1 to 2"):
        centre_prediction(views, 3)
    with pytest.raises(ValueError, match=r"views must be \(V, N, D\)"):
        centre_prediction(views[0])
