"""Augmentation: each change equals torchvision's, sample by sample, and depends on the sample's seed alone."""

from __future__ import annotations

import colorsys
import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from mmcl.config.data import AugmentationConfig
from mmcl.data.augment.images import Augmentation, gaussian_blur, hue_rotation
from mmcl.data.identity import uniforms

EVERYTHING = AugmentationConfig(
    crop_scale=(0.3, 1.0), flip=0.5, rotate=20, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1,
    jitter_prob=0.8, greyscale=0.2, blur=0.5,
)  # fmt: skip


def smooth(count: int = 6, height: int = 48, width: int = 48) -> Tensor:
    """Images without hard edges, levels well inside (0, 255): uint8 (n, H, W, 3)."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    phase = torch.arange(count)[:, None, None, None] + torch.tensor([0.0, 1.0, 2.5])
    wave = torch.sin(3 * x[..., None] + phase) * torch.cos(4 * y[..., None] - 2 * phase)
    return (127 + 50 * wave + 20 * x[..., None]).to(torch.uint8)


def noise(count: int, size: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def plain(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2) / 255


def seeds(count: int) -> Tensor:
    return torch.arange(count) * 7919 + 13


def test_defaults_change_nothing() -> None:
    images = noise(5)
    assert torch.equal(Augmentation(AugmentationConfig(), 32)(images, seeds(5)), plain(images))
    idle = AugmentationConfig(brightness=0.5, hue=0.3, jitter_prob=0.0, fill=0.0)
    assert torch.equal(Augmentation(idle, 32)(images, seeds(5)), plain(images))


def test_an_empty_batch_stays_empty() -> None:
    assert Augmentation(EVERYTHING, 32)(noise(0), seeds(0)).shape == (0, 3, 32, 32)


def test_a_sample_depends_on_its_seed_alone() -> None:
    images, keys = noise(40), seeds(40)
    augment = Augmentation(EVERYTHING, 32)
    full = augment(images, keys)
    assert torch.equal(full, augment(images, keys))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(augment(images[order], keys[order]), full[order], rtol=0, atol=1e-6)
    alone = torch.cat([augment(images[i : i + 1], keys[i : i + 1]) for i in range(40)])
    torch.testing.assert_close(alone, full, rtol=0, atol=1e-6)
    assert (augment(images, keys, stream=1) - full).abs().amax((1, 2, 3)).min() > 0.05
    assert full.dtype == torch.float32
    assert full.min() >= 0
    assert full.max() <= 1


def test_one_change_does_not_move_the_draws_of_another() -> None:
    images = smooth(20)
    flips = Augmentation(AugmentationConfig(flip=0.5), 48)(images, seeds(20))
    both = Augmentation(AugmentationConfig(flip=0.5, brightness=0.2), 48)(images, seeds(20))
    factor = both.mean((1, 2, 3)) / flips.mean((1, 2, 3))
    torch.testing.assert_close(both, flips * factor[:, None, None, None], rtol=1e-4, atol=1e-4)


def test_autocast_does_not_lower_the_precision() -> None:
    images, augment = noise(4), Augmentation(EVERYTHING, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = augment(images, seeds(4))
    assert torch.equal(inside, augment(images, seeds(4)))


def test_flips_are_exact_and_as_often_as_asked() -> None:
    images = noise(2000, 8)
    view = Augmentation(AugmentationConfig(flip=0.3), 8)(images, seeds(2000))
    flipped = (view == plain(images).flip(3)).all(3).all(2).all(1)
    kept = (view == plain(images)).all(3).all(2).all(1)
    assert (flipped ^ kept).all()
    assert abs(flipped.float().mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 2000)


def test_rotation_equals_torchvision() -> None:
    images = smooth()
    view = Augmentation(AugmentationConfig(rotate=40, fill=1.0), 48)(images, seeds(6))
    angles = 40 * (2 * uniforms(seeds(6), 6)[:, 5] - 1)
    for image, angle, ours in zip(plain(images), angles.tolist(), view, strict=True):
        theirs = reference.rotate(image, angle, v2.InterpolationMode.BILINEAR, fill=[1.0, 1.0, 1.0])
        assert (ours - theirs).abs().mean() < 5e-3  # they differ on the border between image and fill
        torch.testing.assert_close(ours[:, 12:36, 12:36], theirs[:, 12:36, 12:36], rtol=0, atol=2e-3)


@pytest.mark.parametrize("size", [48, 96])
def test_crop_and_flip_equal_torchvision(size: int) -> None:
    images, count = smooth(12), 12
    config = AugmentationConfig(crop_scale=(0.2, 0.8), flip=0.5)
    augment = Augmentation(config, size)
    view = augment(images, seeds(count))
    for image, draws, ours in zip(plain(images), uniforms(seeds(count), 6), view, strict=True):
        (width, _, x), (_, height, y) = augment._places(draws[None], *augment._crops(draws[None], 1.0).T)[0].tolist()
        left, top = 24 * (1 + x - abs(width)), 24 * (1 + y - height)
        box = [round(top), round(left), round(48 * height), round(48 * abs(width))]
        theirs = reference.resized_crop(image, *box, [size, size], antialias=False)
        theirs = theirs.flip(2) if width < 0 else theirs
        assert (ours - theirs).abs().max() < 0.05  # whole pixels there, fractions here: half a pixel apart at most


def test_crops_have_the_areas_and_ratios_asked_for_and_lie_inside() -> None:
    augment = Augmentation(AugmentationConfig(crop_scale=(0.1, 1.0)), 32)
    for aspect in (1.0, 1.5):
        draws = uniforms(seeds(4000), 6)
        maps = augment._places(draws, *augment._crops(draws, aspect).T)
        width, height = maps[:, 0, 0], maps[:, 1, 1]
        area, ratio = width * height, width / height * aspect
        assert (width <= 1).all()
        assert (height <= 1).all()
        assert (maps[:, :, 2].abs() + torch.stack([width, height], 1) <= 1 + 1e-6).all()
        torch.testing.assert_close(
            area.quantile(torch.tensor([0.25, 0.75])), torch.tensor([0.325, 0.775]), rtol=0, atol=0.03
        )
        fits = area < 0.5  # every ratio fits
        assert ratio[fits].log().abs().max() <= math.log(4 / 3) + 1e-4
        assert abs(ratio[fits].log().mean()) < 0.02


def test_enlarged_edges_stay_in_the_image() -> None:
    black = torch.zeros(8, 16, 16, 3, dtype=torch.uint8)
    assert not Augmentation(AugmentationConfig(crop_scale=(0.3, 1.0), fill=1.0), 64)(black, seeds(8)).any()


def test_turned_corners_show_the_fill() -> None:
    black = torch.zeros(8, 32, 32, 3, dtype=torch.uint8)
    view = Augmentation(AugmentationConfig(rotate=45, fill=0.5), 32)(black, seeds(8))
    assert view.max() == 0.5
    assert view[:, :, 8:24, 8:24].abs().max() < 1e-6


def test_another_size_is_bilinear_resizing() -> None:
    images = smooth()
    view = Augmentation(AugmentationConfig(), 80)(images, seeds(6))
    theirs = torch.nn.functional.interpolate(plain(images), size=(80, 80), mode="bilinear", align_corners=False)
    torch.testing.assert_close(view, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "draw"), [("brightness", 7), ("contrast", 8), ("saturation", 9)])
def test_colour_factors_equal_torchvision(name: str, draw: int) -> None:
    images = smooth()
    view = Augmentation(AugmentationConfig(**{name: 0.4}), 48)(images, seeds(6))
    factors = 1 + 0.4 * (2 * uniforms(seeds(6), 12)[:, draw] - 1)
    for image, factor, ours in zip(plain(images), factors.tolist(), view, strict=True):
        theirs = getattr(reference, f"adjust_{name}")(image, factor)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


def test_composed_colours_equal_the_changes_one_after_the_other() -> None:
    images = smooth()
    config = AugmentationConfig(brightness=0.3, contrast=0.3, saturation=0.3, jitter_prob=1.0)
    view = Augmentation(config, 48)(images, seeds(6))
    factors = 1 + 0.3 * (2 * uniforms(seeds(6), 12)[:, 7:10] - 1)
    for image, (brightness, contrast, saturation), ours in zip(plain(images), factors.tolist(), view, strict=True):
        theirs = reference.adjust_contrast(reference.adjust_brightness(image, brightness), contrast)
        torch.testing.assert_close(ours, reference.adjust_saturation(theirs, saturation), rtol=0, atol=2e-3)


def test_hue_turns_as_torchvision_turns_and_keeps_luma() -> None:
    """HSV keeps the largest channel and YIQ the luma, so hues are compared, and not colours."""
    images = plain(smooth())
    luma = torch.tensor([0.299, 0.587, 0.114])
    saturated = (images.amax(1) - images.amin(1)) > 0.1
    for shift in (-0.1, 0.05, 0.1):
        ours = torch.einsum("ij,njhw->nihw", hue_rotation(torch.tensor([shift]))[0], images)
        kept = torch.einsum("c,nchw->nhw", luma, ours - images)
        torch.testing.assert_close(kept, torch.zeros_like(kept), rtol=0, atol=1e-4)
        apart = (hue(ours) - hue(reference.adjust_hue(images, shift)))[saturated]
        assert ((apart + 0.5) % 1 - 0.5).abs().mean() < 0.35 * abs(shift)  # turned alike in the mean
    assert torch.equal(hue_rotation(torch.zeros(2)), torch.eye(3).expand(2, 3, 3))
    thirds = torch.linalg.matrix_power(hue_rotation(torch.tensor([1 / 3]))[0], 3)
    torch.testing.assert_close(thirds, torch.eye(3), rtol=0, atol=1e-5)


def hue(images: Tensor) -> Tensor:
    """HSV's hue as a share of the circle."""
    pixels = images.permute(0, 2, 3, 1).reshape(-1, 3).tolist()
    return torch.tensor([colorsys.rgb_to_hsv(*pixel)[0] for pixel in pixels]).view(len(images), *images.shape[2:])


def test_greyscale_equals_torchvision_and_is_as_often_as_asked() -> None:
    images = noise(1000, 8)
    view = Augmentation(AugmentationConfig(greyscale=0.2), 8)(images, seeds(1000))
    grey = (view - view[:, :1]).abs().amax((1, 2, 3)) < 1e-6
    assert abs(grey.float().mean() - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 1000)
    theirs = reference.rgb_to_grayscale(plain(images), 3)
    torch.testing.assert_close(view[grey], theirs[grey], rtol=0, atol=1e-3)
    assert torch.equal(view[~grey], plain(images)[~grey])


def test_blur_equals_torchvision_and_is_as_often_as_asked() -> None:
    images = noise(5)
    sigma = torch.tensor([0.1, 0.5, 1.0, 1.5, 2.0])
    blurred = gaussian_blur(plain(images), sigma, 6)
    for image, width, ours in zip(plain(images), sigma.tolist(), blurred, strict=True):
        torch.testing.assert_close(ours, reference.gaussian_blur(image, [13, 13], [width, width]), rtol=0, atol=1e-5)
    many = noise(1000, 8)
    view = Augmentation(AugmentationConfig(blur=0.4, blur_sigma=(1.0, 2.0)), 8)(many, seeds(1000))
    kept = (view == plain(many)).all(3).all(2).all(1)
    assert abs((~kept).float().mean() - 0.4) < 4 * math.sqrt(0.4 * 0.6 / 1000)


def test_jitter_is_as_often_as_asked() -> None:
    images = noise(1000, 8)
    view = Augmentation(AugmentationConfig(brightness=0.4, hue=0.1, jitter_prob=0.7), 8)(images, seeds(1000))
    kept = (view == plain(images)).all(3).all(2).all(1)
    assert abs((~kept).float().mean() - 0.7) < 4 * math.sqrt(0.7 * 0.3 / 1000)
