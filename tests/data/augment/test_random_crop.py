"""Random crops of originals: distributed as torchvision's, and of the pixels of torchvision's."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from mmcl.config.data import AugmentationConfig
from mmcl.data.augment.images import Augmentation
from mmcl.data.augment.random_crop import (
    CROP_DRAWS,
    PackedImages,
    batched_crops,
    central_squares,
    crop_boxes,
    resized_crops,
)
from mmcl.data.identity import uniforms

SIZES = [(40, 60), (75, 50), (33, 33), (48, 64), (90, 41)]


def pack(images: list[Tensor]) -> PackedImages:
    return PackedImages(
        torch.tensor([image.shape[:2] for image in images]), torch.cat([image.reshape(-1, 3) for image in images])
    )


def noise(sizes: list[tuple[int, int]] = SIZES) -> PackedImages:
    random = torch.Generator().manual_seed(0)
    return pack([torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=random) for size in sizes])


def drawn(count: int, size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    draws = uniforms(torch.arange(count) * 31 + 7, 2 + CROP_DRAWS)
    return crop_boxes(torch.tensor([size]).expand(count, 2), scale, ratio, draws)


@pytest.mark.parametrize(
    ("size", "scale"),
    [((300, 400), (0.08, 1.0)), ((400, 300), (0.2, 1.0)), ((333, 500), (0.6, 1.0)), ((80, 300), (0.05, 0.9))],
)
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int], scale: tuple[float, float]) -> None:
    torch.manual_seed(0)
    image, ratio, count = torch.empty(3, *size), (3 / 4, 4 / 3), 3000
    crop = v2.RandomResizedCrop(8, scale, ratio)
    params = [crop.make_params([image]) for _ in range(count)]
    theirs = torch.tensor([[of[name] for name in ("top", "left", "height", "width")] for of in params]).double()
    ours = drawn(count, size, scale, ratio).double()

    def measures(boxes: Tensor) -> list[Tensor]:
        top, left, height, width = boxes.T
        below, beside = size[0] - height - top, size[1] - width - left
        return [top, left, height, width, height * width, width / height, below, beside]

    for mine, other in zip(measures(ours), measures(theirs), strict=True):
        assert stats.ks_2samp(mine.numpy(), other.numpy()).pvalue > 1e-3
    assert (ours >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= torch.tensor(size)).all()


def test_where_nothing_fits_the_crop_is_torchvisions_largest_in_the_centre() -> None:
    for size in ((20, 200), (211, 30), (50, 50)):
        crop = v2.RandomResizedCrop(8, (0.999, 1.0), (1.2, 1.3))
        params = crop.make_params([torch.empty(3, *size)])
        expected = [params[name] for name in ("top", "left", "height", "width")]
        assert drawn(5, size, (0.999, 1.0), (1.2, 1.3)).tolist() == [expected] * 5


@pytest.mark.parametrize("crops", [resized_crops, batched_crops])
@pytest.mark.parametrize("size", [16, 32, 100])
def test_pixels_equal_torchvisions_resized_crop(crops, size: int) -> None:
    images = noise()
    draws = uniforms(torch.arange(5), 2 + CROP_DRAWS, size)
    boxes = crop_boxes(images.sizes, (0.1, 1.0), (0.5, 2.0), draws)
    ours = crops(images, boxes, size)
    assert ours.dtype == torch.uint8
    for image, box, view in zip(images.images(), boxes.tolist(), ours, strict=True):
        plain = image.permute(2, 0, 1)
        theirs = reference.resized_crop(plain, *box, [size, size], antialias=True).int()
        assert (view.int() - theirs).abs().max() <= 1
        exact = reference.resized_crop(plain.double(), *box, [size, size], antialias=True)
        assert (view.double() - exact).abs().max() < 1.01


@pytest.mark.parametrize("crops", [resized_crops, batched_crops])
def test_what_lies_outside_has_the_level_of_the_fill(crops) -> None:
    images = noise([(10, 20), (30, 12)])
    boxes = torch.tensor([[-4, -6, 18, 32], [5, -3, 30, 18]])
    ours = crops(images, boxes, 24, fill=77)
    for image, (top, left, height, width), view in zip(images.images(), boxes.tolist(), ours, strict=True):
        below, beside = top + height - image.shape[0], left + width - image.shape[1]
        outside = [max(-left, 0), max(-top, 0), max(beside, 0), max(below, 0)]
        around = reference.pad(image.permute(2, 0, 1), outside, fill=77)
        box = [max(top, 0), max(left, 0), height, width]
        theirs = reference.resized_crop(around, *box, [24, 24], antialias=True).int()
        assert (view.int() - theirs).abs().max() <= 1


def test_a_long_batch_is_cropped_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(SIZES * 5)
    boxes = central_squares(images.sizes)
    expected = batched_crops(images, boxes, 16)
    monkeypatch.setattr("mmcl.data.augment.random_crop._CHUNK_BYTES", 300_000)
    torch.testing.assert_close(batched_crops(images, boxes, 16).int(), expected.int(), rtol=0, atol=1)


EVERYTHING = AugmentationConfig(
    crop_scale=(0.2, 1.0), flip=0.5, rotate=20, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1,
    jitter_prob=0.8, greyscale=0.2, blur=0.5,
)  # fmt: skip


@pytest.mark.parametrize("config", [EVERYTHING, AugmentationConfig(crop_scale=(0.2, 1.0), flip=0.5)])
def test_a_view_of_an_original_depends_on_its_seed_alone(config: AugmentationConfig) -> None:
    images, seeds = noise(), torch.arange(5) + 100
    augment = Augmentation(config, 24)
    views = augment.of_originals(images, 33, seeds, 2)
    assert views.shape == (5, 3, 24, 24)
    assert views.min() >= 0
    assert views.max() <= 1
    order = torch.tensor([3, 0, 2])
    chosen = augment.of_originals(images.take(order), 33, seeds[order], 2)
    assert torch.equal(chosen, views[order])
    assert (augment.of_originals(images, 33, seeds, 3) - views).abs().amax((1, 2, 3)).min() > 0.05
    square = images.images()[2]
    assert torch.equal(augment(square[None], seeds[2:3], 2), views[2:3]), "the tower's square is as it was"


def test_a_view_is_torchvisions_crop_at_the_box_drawn_and_flipped() -> None:
    images, seeds = noise([(50, 80)] * 40), torch.arange(40)
    views = Augmentation(AugmentationConfig(crop_scale=(0.3, 1.0), flip=0.5), 20).of_originals(images, 32, seeds)
    draws = uniforms(seeds, 14 + CROP_DRAWS - 2)
    boxes = crop_boxes(images.sizes, (0.3, 1.0), (3 / 4, 4 / 3), draws[:, [2, 3, 0, 1, *range(14, 32)]])
    flipped = 0
    for image, box, flip, view in zip(images.images(), boxes.tolist(), draws[:, 4] < 0.5, views, strict=True):
        theirs = reference.resized_crop(image.permute(2, 0, 1), *box, [20, 20], antialias=True) / 255
        assert (view - (theirs.flip(2) if flip else theirs)).abs().max() < 1.5 / 255
        flipped += int(flip)
    assert 8 < flipped < 32


def test_without_a_crop_a_view_is_the_square_in_the_centre() -> None:
    images, seeds = noise([(50, 81), (90, 41)]), torch.arange(2)
    views = Augmentation(AugmentationConfig(), 30).of_originals(images, 32, seeds)
    for image, view in zip(images.images(), views, strict=True):
        side = min(image.shape[:2])
        top, left = ((length - side) // 2 for length in image.shape[:2])
        square = image[top : top + side, left : left + side].permute(2, 0, 1)
        theirs = reference.resize(square, [30, 30], antialias=True) / 255
        assert (view - theirs).abs().max() < 1.5 / 255


def test_a_turned_crop_shows_the_image_beyond_it_and_the_fill_beyond_the_image() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 120), torch.linspace(0, 1, 160), indexing="ij")
    image = (255 * torch.stack([x, y, 1 - x], dim=2)).to(torch.uint8)
    seeds = torch.arange(30)
    config = AugmentationConfig(crop_scale=(0.2, 0.4), rotate=30, fill=0.0)
    views = Augmentation(config, 32).of_originals(pack([image] * 30), 64, seeds)
    draws = uniforms(seeds, 32)
    sizes = torch.tensor([[120, 160]]).expand(30, 2)
    boxes = crop_boxes(sizes, config.crop_scale, config.crop_ratio, draws[:, [2, 3, 0, 1, *range(14, 32)]]).tolist()
    angles = torch.deg2rad(30 * (2 * draws[:, 5] - 1))
    axis = (2 * torch.arange(32) + 1) / 32 - 1
    down, across = torch.meshgrid(axis, axis, indexing="ij")
    outside = 0
    for (top, left, height, width), angle, view in zip(boxes, angles, views, strict=True):
        turned_x = across * angle.cos() - down * angle.sin()
        turned_y = across * angle.sin() + down * angle.cos()
        column, row = left + width * (turned_x + 1) / 2, top + height * (turned_y + 1) / 2
        expected = torch.stack([column / 160, row / 120, 1 - column / 160])
        within = (column > 4) & (column < 156) & (row > 4) & (row < 116)
        assert ((view - expected).abs()[:, within] < 0.03).all()
        beyond = (column < -4) | (column > 164) | (row < -4) | (row > 124)
        assert (view[:, beyond] < 0.02).all()
        outside += int(beyond.sum())
    assert outside > 50


def test_a_square_that_is_larger_than_its_view_is_antialiased() -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 64, 64, 3), dtype=torch.uint8, generator=random)
    views = Augmentation(AugmentationConfig(), 16)(images, torch.arange(20))
    theirs = reference.resize(images.permute(0, 3, 1, 2), [16, 16], antialias=True) / 255
    assert (views - theirs).abs().max() < 1.5 / 255
    small = Augmentation(AugmentationConfig(crop_scale=(0.02, 0.06)), 32)(images, torch.arange(20))
    assert small.shape == (20, 3, 32, 32), "and one whose crops are all enlarged is not looked at again"
