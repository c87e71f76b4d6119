"""Augmentation of batches: as torchvision's transforms one after the other, sample by sample, from its seed alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2

from mmcl.config.data import AugmentationConfig
from mmcl.data.augment.images import Augmentation
from mmcl.data.images import decode_originals

SIMCLR = {
    "crop_scale": (0.2, 1.0), "flip": 0.5, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2,
    "jitter_prob": 0.8, "greyscale": 0.2,
}  # fmt: skip
EVERYTHING = AugmentationConfig(**SIMCLR, flip_vertical=0.5, blur=0.5, solarise=0.3)
LEVEL = 1 / 255


def plain(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2) / 255


def seeds(count: int) -> Tensor:
    return torch.arange(count) * 7919 + 13


def share_is(found: Tensor, expected: float) -> bool:
    """Whether the share of true values can be that of draws with this probability."""
    return stats.binomtest(int(found.sum()), len(found), expected).pvalue > 1e-3


def test_defaults_change_nothing(noise) -> None:
    images = noise(5)
    assert torch.equal(Augmentation(AugmentationConfig(), 32)(images, seeds(5)), plain(images))
    idle = AugmentationConfig(brightness=0.5, hue=0.3, jitter_prob=0.0, fill=0.0)
    assert torch.equal(Augmentation(idle, 32)(images, seeds(5)), plain(images))


def test_an_empty_batch_stays_empty(noise) -> None:
    augment = Augmentation(EVERYTHING, 32)
    assert augment(noise(0), seeds(0), (0, 1)).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("rotate", [0, 20])
def test_a_sample_depends_on_its_seed_alone(noise, rotate: int) -> None:
    images, keys = noise(40), seeds(40)
    augment = Augmentation(EVERYTHING.model_copy(update={"rotate": rotate}), 32)
    full = augment(images, keys)
    assert torch.equal(full, augment(images, keys))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(augment(images[order], keys[order]), full[order], rtol=0, atol=1e-6)
    alone = torch.cat([augment(images[i : i + 1], keys[i : i + 1]) for i in range(40)])
    torch.testing.assert_close(alone, full, rtol=0, atol=1e-6)
    assert (augment(images, keys, (1,)) - full).abs().amax((1, 2, 3)).min() > 0.05
    assert full.dtype == torch.float32
    assert full.min() >= 0
    assert full.max() <= 1


@pytest.mark.parametrize("inference", [False, True])
def test_any_number_of_threads_gives_the_same_views(noise, pack, inference: bool) -> None:
    augment, keys = Augmentation(EVERYTHING, 24), seeds(60)
    originals, before = pack([*noise(30, 40, 60), *noise(30)]), torch.get_num_threads()
    views = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with torch.inference_mode(inference), torch.autocast("cpu", enabled=True):
                views.append(augment.of_originals(originals, 32, keys, (0, 1)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*views)


def test_a_tower_learns_from_views(noise) -> None:
    weight = torch.ones(3, 1, 1, requires_grad=True)
    for views in (Augmentation(EVERYTHING, 24)(noise(6), seeds(6)), Augmentation(EVERYTHING, 64)(noise(6), seeds(6))):
        (gradient,) = torch.autograd.grad((weight * views).sum(), weight)  # views are kept for the backward pass
        torch.testing.assert_close(gradient[:, 0, 0], views.sum((0, 2, 3)))


def test_several_draws_stand_row_by_row(noise, pack) -> None:
    augment, keys = Augmentation(EVERYTHING, 24), seeds(6)
    originals = pack([*noise(3, 40, 60), *noise(3)])
    for views in (
        lambda draws: augment(noise(6), keys, draws),
        lambda draws: augment.of_originals(originals, 32, keys, draws),
    ):
        both = views((2, 5)).unflatten(0, (6, 2))
        assert torch.equal(both[:, 0], views((2,)))
        assert torch.equal(both[:, 1], views((5,)))


def test_one_change_does_not_move_the_draws_of_another(smooth) -> None:
    images = smooth(20)
    few = Augmentation(AugmentationConfig(flip=0.5), 48).parameters(images, seeds(20))
    all_ = Augmentation(EVERYTHING.model_copy(update={"flip": 0.5}), 48).parameters(images, seeds(20))
    assert (few.flips[:, 1] == all_.flips[:, 1]).all()


def test_autocast_does_not_lower_the_precision(noise) -> None:
    images, augment = noise(4), Augmentation(EVERYTHING, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = augment(images, seeds(4))
    assert torch.equal(inside, augment(images, seeds(4)))


@pytest.mark.parametrize("size", [32, 70])
def test_views_of_images_of_the_towers_size_equal_torchvisions_transforms_at_the_same_parameters(
    noise, pack, torchvisions, size: int
) -> None:
    images = noise(60)
    augment, originals = Augmentation(EVERYTHING, size), pack([*images])
    views, drawn = augment.of_originals(originals, 32, seeds(60)), augment.parameters(originals, seeds(60))
    for number, (image, view) in enumerate(zip(images, views, strict=True)):
        theirs = torchvisions(image, drawn.take(np.array([number])), size)
        assert (view - theirs).abs().max() < LEVEL


def test_views_of_originals_equal_torchvisions_transforms_but_for_the_rounding_of_the_crop(
    smooth, pack, torchvisions
) -> None:
    images = [*smooth(20, 50, 80), *smooth(20, 90, 41), *smooth(20, 24, 30)]
    originals = pack(images)
    augment = Augmentation(EVERYTHING, 32)
    views, drawn = augment.of_originals(originals, 48, seeds(60)), augment.parameters(originals, seeds(60))
    for number, (image, view) in enumerate(zip(images, views, strict=True)):
        of = drawn.take(np.array([number]))
        gain = of.factors[0, :3].clip(1).prod() * (8 if of.factors[0, 3] else 1)  # hue is steep where colours are weak
        assert (view - torchvisions(image, of, 32)).abs().max() < 1.1 * LEVEL * gain
        assert (view - torchvisions(image, of, 32)).abs().mean() < 1.1 * LEVEL


def test_an_image_is_changed_alike_whatever_is_beside_it(noise, pack) -> None:
    squares, wide = noise(5), noise(5, 40, 60)
    augment = Augmentation(EVERYTHING, 24)
    mixed = augment.of_originals(pack([*squares, *wide]), 32, seeds(10), (1,))
    alone = augment.of_originals(pack([*squares]), 32, seeds(10)[:5], (1,))
    torch.testing.assert_close(mixed[:5], alone, rtol=0, atol=1e-6)
    order = torch.tensor([7, 2, 9])
    chosen = augment.of_originals(pack([*squares, *wide]).take(order), 32, seeds(10)[order], (1,))
    torch.testing.assert_close(chosen, mixed[order], rtol=0, atol=1e-6)


def test_crops_of_squares_are_those_of_fractions_of_their_pixels(smooth, torchvisions) -> None:
    images = smooth(12)
    augment = Augmentation(AugmentationConfig(crop_scale=(0.2, 0.8), flip=0.5), 64)
    views, drawn = augment(images, seeds(12)), augment.parameters(images, seeds(12))
    whole = drawn.rounded(torch.full((12, 2), 48))
    assert (whole.boxes != drawn.boxes).all(axis=1).any()
    for number, (image, view) in enumerate(zip(images, views, strict=True)):
        theirs = torchvisions(image, whole.take(np.array([number])), 64)
        assert (view - theirs).abs().max() < 0.06  # half a pixel apart at most


def test_settings_that_are_written_down_are_read_again() -> None:
    config = AugmentationConfig(size=24, flip=0.5, second={"blur": 0.1})
    assert AugmentationConfig.model_validate(config.model_dump()) == config


def test_the_second_view_has_its_own_settings(noise) -> None:
    config = AugmentationConfig(flip=0.5, blur=1.0, second={"blur": 0.1, "solarise": 0.2})
    augment, images = Augmentation(config, 32), noise(1000)
    first, second, third = (augment.parameters(images, seeds(1000), (draw,)) for draw in range(3))
    assert (first.sigmas > 0).all()
    assert (third.sigmas > 0).all()
    assert share_is(second.sigmas > 0, 0.1)
    assert share_is(second.solarised, 0.2)
    assert share_is(second.flips[:, 1], 0.5)
    assert not first.solarised.any()
    assert not third.solarised.any()


def test_rotation_equals_torchvision(smooth, torchvisions) -> None:
    images = smooth()
    augment = Augmentation(AugmentationConfig(rotate=40), 48)
    views, drawn = augment(images, seeds(6)), augment.parameters(images, seeds(6))
    for number, (image, ours) in enumerate(zip(images, views, strict=True)):
        theirs = torchvisions(image, drawn.take(np.array([number])), 48)
        assert (ours - theirs).abs().mean() < 5e-3  # they differ on the border between image and fill
        torch.testing.assert_close(ours[:, 12:36, 12:36], theirs[:, 12:36, 12:36], rtol=0, atol=2e-3)


def test_a_turned_crop_shows_the_image_beyond_it_and_the_fill_beyond_the_image(pack) -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 120), torch.linspace(0, 1, 160), indexing="ij")
    images = pack([(255 * torch.stack([x, y, 1 - x], dim=2)).to(torch.uint8)] * 30)
    augment = Augmentation(AugmentationConfig(crop_scale=(0.2, 0.4), rotate=30, fill=0.0), 32)
    views, drawn = augment.of_originals(images, 64, seeds(30)), augment.parameters(images, seeds(30))
    axis = (2 * torch.arange(32) + 1) / 32 - 1
    down, across = torch.meshgrid(axis, axis, indexing="ij")
    outside = 0
    for (top, left, height, width), degrees, view in zip(drawn.boxes.tolist(), drawn.angles, views, strict=True):
        angle = torch.tensor(math.radians(degrees))
        turned_x = across * angle.cos() - down * angle.sin()
        turned_y = across * angle.sin() + down * angle.cos()
        column, row = left + width * (turned_x + 1) / 2, top + height * (turned_y + 1) / 2
        expected = torch.stack([column / 160, row / 120, 1 - column / 160])
        within = (column > 4) & (column < 156) & (row > 4) & (row < 116)
        assert ((view - expected).abs()[:, within] < 0.03).all()
        beyond = (column < -4) | (column > 164) | (row < -4) | (row > 124)
        assert (view[:, beyond] < 0.02).all()
        outside += int(beyond.sum())
    assert outside > 20


def test_turned_corners_show_the_fill() -> None:
    black = torch.zeros(8, 32, 32, 3, dtype=torch.uint8)
    view = Augmentation(AugmentationConfig(rotate=45, fill=0.5), 32)(black, seeds(8))
    assert view.max() == 0.5
    assert view[:, :, 8:24, 8:24].abs().max() < 1e-6


def test_without_a_crop_a_view_is_the_square_in_the_centre(noise, pack, torchvisions) -> None:
    images = [*noise(1, 50, 81), *noise(1, 90, 41)]
    views = Augmentation(AugmentationConfig(), 30).of_originals(pack(images), 32, seeds(2))
    for image, view in zip(images, views, strict=True):
        side = min(image.shape[:2])
        top, left = ((length - side) // 2 for length in image.shape[:2])
        square = image[top : top + side, left : left + side].permute(2, 0, 1)
        assert (view - v2.functional.resize(square, [30, 30], antialias=True) / 255).abs().max() < 1.5 * LEVEL


def test_a_square_that_is_larger_than_its_view_is_antialiased(noise) -> None:
    images = noise(20, 64)
    views = Augmentation(AugmentationConfig(), 16)(images, seeds(20))
    theirs = v2.functional.resize(images.permute(0, 3, 1, 2), [16, 16], antialias=True) / 255
    assert (views - theirs).abs().max() < 1.5 * LEVEL


def test_output_statistics_are_those_of_torchvisions_random_transforms(noise, smooth) -> None:
    count, size = 700, 16
    images = torch.cat([smooth(count // 2, 24, 24), (smooth(count // 2, 24, 24) // 2 + noise(count // 2, 24) // 2)])
    config = AugmentationConfig(**SIMCLR, blur=0.5, solarise=0.2)
    ours = Augmentation(config, size)(images, seeds(count))
    torch.manual_seed(0)
    theirs_of = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomResizedCrop(size, (0.2, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], 0.5),
            v2.RandomSolarize(0.5, 0.2),
        ]
    )
    theirs = torch.stack([theirs_of(image) for image in images.permute(0, 3, 1, 2)])
    for measure in (
        lambda views: views.mean((1, 2, 3)),
        lambda views: views.std((1, 2, 3)),
        lambda views: (views.amax(1) - views.amin(1)).mean((1, 2)),  # colour
        lambda views: views[:, 0].mean((1, 2)) - views[:, 2].mean((1, 2)),
        lambda views: views.diff(dim=3).abs().mean((1, 2, 3)),  # sharpness
    ):
        assert stats.ks_2samp(measure(ours).numpy(), measure(theirs).numpy()).pvalue > 1e-3


def test_images_of_every_mode_and_size_become_views(pack) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    images = [
        Image.fromarray(random.integers(0, 256, (20, 30), dtype=np.uint8)),
        Image.fromarray(random.integers(0, 256, (1, 1, 3), dtype=np.uint8)),
        Image.fromarray(random.integers(0, 256, (40, 25, 4), dtype=np.uint8)),
        Image.fromarray(random.integers(0, 2**16, (16, 16), dtype=np.uint16)),
        Image.fromarray(random.integers(0, 256, (3, 200, 3), dtype=np.uint8)).convert("P"),
        Image.new("1", (1, 50)),
    ]
    originals, errors = decode_originals(images, 16, "crop", 24)
    assert errors == {}
    packed = pack([torch.from_numpy(image.copy()) for image in originals])
    for config in (EVERYTHING, EVERYTHING.model_copy(update={"rotate": 30}), AugmentationConfig(blur=1.0)):
        views = Augmentation(config, 16).of_originals(packed, 16, seeds(6), (0, 1))
        assert views.shape == (12, 3, 16, 16)
        assert views.isfinite().all()
        assert views.min() >= 0
        assert views.max() <= 1
    dot = torch.full((1, 1, 1, 3), 255, dtype=torch.uint8)
    views = Augmentation(EVERYTHING.model_copy(update={"blur": 1.0, "solarise": 0.0, "jitter_prob": 0.0}), 1)(
        dot, seeds(1)
    )
    torch.testing.assert_close(views, torch.ones(1, 3, 1, 1))
