from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from mmcl.evaluation.metrics import rank
from mmcl.evaluation.metrics.rank import lidar, rank_me
from mmcl.runtime.errors import MmclError


def entropy_rank(spectrum: np.ndarray) -> float:
    shares = spectrum / spectrum.sum() + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


@pytest.mark.parametrize("rows", [300, 20])
def test_rank_me_equals_its_formula(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).standard_normal((rows, 32)) * np.geomspace(1e-3, 5, 32) + 0.7
    expected = entropy_rank(np.linalg.svd(vectors, compute_uv=False))
    assert rank_me(vectors) == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr(rank, "_ROWS", 64)
    assert rank_me(torch.from_numpy(vectors)) == pytest.approx(expected, rel=1e-6)


def test_rank_me_is_between_one_and_the_width() -> None:
    random = np.random.default_rng(0)
    assert rank_me(random.standard_normal((5000, 16))) == pytest.approx(16, rel=0.01)
    assert rank_me(np.ones((100, 16))) == pytest.approx(1, abs=1e-3)
    assert rank_me(random.standard_normal((100, 3)) @ random.standard_normal((3, 16))) < 3.001


def test_lidar_equals_its_formula() -> None:
    random = np.random.default_rng(0)
    images = random.standard_normal((40, 1, 12)) * np.linspace(0.1, 2, 12)
    views = images + random.standard_normal((40, 7, 12)) * np.linspace(1, 0.2, 12)
    means = views.mean(1)
    between = sum(np.outer(mean - means.mean(0), mean - means.mean(0)) for mean in means) / 40
    within = sum(np.outer(view - means[i], view - means[i]) for i in range(40) for view in views[i]) / (40 * 7)
    root = np.linalg.inv(scipy.linalg.sqrtm(within + 1e-4 * np.eye(12)).real)
    expected = entropy_rank(np.linalg.eigvalsh(root @ between @ root).clip(min=0))
    assert lidar(views) == pytest.approx(expected, rel=1e-6)
    assert lidar(torch.from_numpy(views).float()) == pytest.approx(expected, rel=1e-4)


def test_lidar_does_not_count_what_differs_between_views_and_rank_me_does() -> None:
    random = np.random.default_rng(0)
    views = np.zeros((200, 10, 8))
    views[..., :2] = random.standard_normal((200, 1, 2))  # tells images apart
    views[..., 2:] = random.standard_normal((200, 10, 6))  # noise of each view
    assert lidar(views) < 3.5
    assert rank_me(views.reshape(-1, 8)) > 7.5


@pytest.mark.parametrize("shape", [(5, 4), (1, 4, 3), (5, 1, 3)])
def test_lidar_needs_several_views_of_several_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(MmclError, match="at least two images with two views"):
        lidar(np.zeros(shape))
