"""Changes of colour equal torchvision's at the same factors, and have its order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from mmcl.data.augment import colour

LUMA = 2e-4  # of its weights torchvision has four digits, whose sum is 0.9999


@pytest.fixture
def images(noise):
    """Noise, greys, pure colours and black: float (n, 3, H, W)."""
    pure = torch.tensor(list(itertools.product((0, 255), repeat=3)), dtype=torch.uint8)
    corners = pure.repeat_interleave(128, dim=0).view(1, 32, 32, 3)
    grey = noise(1)[..., :1].expand(1, 32, 32, 3)
    return torch.cat([noise(4), corners, grey, torch.zeros(1, 32, 32, 3, dtype=torch.uint8)]).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
@pytest.mark.parametrize("strength", [0.0, 0.05, 0.2, 0.5])
def test_a_change_equals_torchvisions(images, name: str, strength: float) -> None:
    for sign in (-1, 1):
        factors = np.linspace(0.5, 1, len(images), dtype=np.float32) * sign * strength + (name != "hue")
        ours = images.clone()
        getattr(colour, f"adjust_{name}")(ours.flatten(2), factors)
        for image, factor, view in zip(images, factors.tolist(), ours, strict=True):
            theirs = getattr(reference, f"adjust_{name}")(image, factor)
            torch.testing.assert_close(view, theirs, rtol=0, atol=LUMA)


@pytest.mark.parametrize("shift", [-0.5, 1 / 3, 0.5])
def test_hue_goes_around_the_circle(images, shift: float) -> None:
    ours = images.clone()
    colour.adjust_hue(ours.flatten(2), np.full(len(images), shift, dtype=np.float32))
    torch.testing.assert_close(ours, reference.adjust_hue(images, shift), rtol=0, atol=1e-5)


def test_greys_and_solarised_levels_equal_torchvisions(images) -> None:
    grey, solarised = images.clone(), images.clone()
    colour.drop_colour(grey.flatten(2))
    torch.testing.assert_close(grey, reference.rgb_to_grayscale(images, 3), rtol=0, atol=LUMA)
    colour.solarise(solarised.flatten(2))
    torch.testing.assert_close(solarised, reference.solarize(images, 0.5), rtol=0, atol=1e-6)


def test_jitter_has_the_order_of_each_sample(noise) -> None:
    images = noise(24).permute(0, 3, 1, 2) / 255
    orders = np.array(list(itertools.permutations(range(4))))
    factors = np.tile(np.float32([1.6, 0.4, 1.7, 0.15]), (24, 1))
    factors[::5, 2], factors[::7, 3] = 1.0, 0.0
    ours = images.clone()
    colour.jitter(ours.flatten(2), orders, factors)
    names = ("brightness", "contrast", "saturation", "hue")
    results = []
    for image, order, of, view in zip(images, orders, factors, ours, strict=True):
        for number in order:
            image = getattr(reference, f"adjust_{names[number]}")(image, float(of[number]))
        torch.testing.assert_close(view, image, rtol=0, atol=1e-3)
        results.append(image)
    assert (torch.stack(results[1:5]) - ours[6:10]).abs().max() > 0.05, "another order gives other images"
