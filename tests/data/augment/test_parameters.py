"""What is drawn for a sample is distributed as torchvision's transforms draw it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from mmcl.config.data import AugmentationConfig, ImageChangesConfig
from mmcl.data.augment.parameters import NEUTRAL, Parameters, draw_parameters, row_by_row
from mmcl.data.identity import mix

COUNT = 3000


def draw(size: tuple[int, int] = (32, 32), count: int = COUNT, **settings) -> Parameters:
    seeds = mix(torch.arange(count), 5)
    return draw_parameters(ImageChangesConfig(**settings), torch.tensor([size]).expand(count, 2), seeds, 1)


def alike(ours: np.ndarray, theirs: list[float]) -> bool:
    return stats.ks_2samp(ours, theirs).pvalue > 1e-3


@pytest.mark.parametrize("strength", [0.4, 0.8, 1.5])
def test_factors_are_distributed_as_torchvisions(strength: float) -> None:
    ours = draw(brightness=strength, contrast=strength, saturation=strength, hue=0.2).factors
    torch.manual_seed(0)
    jitter = v2.ColorJitter(strength, strength, strength, 0.2)
    theirs = [jitter.make_params([]) for _ in range(COUNT)]
    for number, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        assert alike(ours[:, number], [float(of[f"{name}_factor"]) for of in theirs])
    for other in range(3):
        assert abs(np.corrcoef(ours[:, other], ours[:, other + 1])[0, 1]) < 4 / COUNT**0.5


def test_all_orders_of_the_jitter_are_as_frequent() -> None:
    counts = Counter(map(tuple, draw(hue=0.1).orders.tolist()))
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_changes_are_as_frequent_as_asked_and_independent() -> None:
    chances = {"flip": 0.5, "flip_vertical": 0.3, "jitter_prob": 0.8, "greyscale": 0.2, "blur": 0.6, "solarise": 0.1}
    of = draw(brightness=0.4, hue=0.1, **chances)
    jittered = of.factors != NEUTRAL
    assert (jittered[:, 0] == jittered[:, 3]).all()
    assert not jittered[:, 1:3].any()
    found = [of.flips[:, 1], of.flips[:, 0], jittered[:, 0], of.grey, of.sigmas > 0, of.solarised]
    for chosen, chance in zip(found, chances.values(), strict=True):
        assert stats.binomtest(int(chosen.sum()), COUNT, chance).pvalue > 1e-3
    correlations = np.corrcoef(np.array(found, dtype=float)) - np.eye(len(found))
    assert np.abs(correlations).max() < 4 / COUNT**0.5


def test_blurs_and_rotations_are_distributed_as_torchvisions() -> None:
    torch.manual_seed(0)
    of = draw(blur=1.0, blur_sigma=(0.1, 2.0), rotate=30)
    blur, rotation = v2.GaussianBlur(13, (0.1, 2.0)), v2.RandomRotation(30)
    assert alike(of.sigmas, [blur.make_params([])["sigma"][0] for _ in range(COUNT)])
    assert alike(of.angles, [rotation.make_params([])["angle"] for _ in range(COUNT)])


@pytest.mark.parametrize("size", [(32, 32), (300, 400)])
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    image, crop = torch.empty(3, *size), v2.RandomResizedCrop(8, (0.2, 1.0))
    theirs = [crop.make_params([image]) for _ in range(COUNT)]
    ours = draw(size, crop_scale=(0.2, 1.0)).boxes
    for number, name in enumerate(("top", "left", "height", "width")):
        assert alike(ours[:, number], [of[name] for of in theirs])


def test_several_draws_stand_row_by_row_and_differ() -> None:
    settings = AugmentationConfig(crop_scale=(0.2, 1.0), brightness=0.5)
    sizes, seeds = torch.full((5, 2), 32), torch.arange(5)
    draws = [draw_parameters(settings, sizes, seeds, number) for number in range(3)]
    joined = row_by_row(draws)
    assert len(joined) == 15
    for number, alone in enumerate(draws):
        assert (joined.boxes[number::3] == alone.boxes).all()
        assert (joined.factors[number::3] == alone.factors).all()
    assert len(np.unique(joined.factors[:, 0])) == 15
