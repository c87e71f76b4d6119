"""Random crops of originals: distributed as torchvision's, and of the pixels of torchvision's."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from mmcl.data.augment.random_crop import (
    CROP_DRAWS,
    PackedImages,
    batched_crops,
    boxes_within_squares,
    central_squares,
    crop_boxes,
    resized_crops,
    rounded_boxes,
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
    rows = torch.tensor([3, 0, 1, 4, 2, 3])
    flips = torch.tensor([[False, True], [True, False], [True, True], [False, False], [False, True], [False, False]])
    ours = crops(images, rows, boxes[rows], size, 255, flips)
    assert ours.dtype == torch.uint8
    for row, flip, view in zip(rows.tolist(), flips.tolist(), ours, strict=True):
        view = view.flip([dim for dim in (1, 2) if flip[dim - 1]])
        plain, box = images.images()[row].permute(2, 0, 1), boxes[row].tolist()
        theirs = reference.resized_crop(plain, *box, [size, size], antialias=True).int()
        assert (view.int() - theirs).abs().max() <= 1
        exact = reference.resized_crop(plain.double(), *box, [size, size], antialias=True)
        assert (view.double() - exact).abs().max() < 1.01


@pytest.mark.parametrize("crops", [resized_crops, batched_crops])
def test_what_lies_outside_has_the_level_of_the_fill(crops) -> None:
    images = noise([(10, 20), (30, 12)])
    boxes = torch.tensor([[-4, -6, 18, 32], [5, -3, 30, 18]])
    ours = crops(images, torch.arange(2), boxes, 24, 77, torch.zeros(2, 2, dtype=torch.bool))
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
    rows = torch.arange(25)
    unflipped = torch.zeros(25, 2, dtype=torch.bool)
    expected = batched_crops(images, rows, boxes, 16, 255, unflipped)
    monkeypatch.setattr("mmcl.data.augment.random_crop._CHUNK_BYTES", 300_000)
    torch.testing.assert_close(
        batched_crops(images, rows, boxes, 16, 255, unflipped).int(), expected.int(), rtol=0, atol=1
    )


def test_crops_within_squares_have_the_areas_and_ratios_asked_for_and_lie_inside() -> None:
    for height, width in ((32, 32), (32, 48)):
        sizes, draws = torch.tensor([[height, width]]).expand(4000, 2), uniforms(torch.arange(4000), 4)
        boxes = boxes_within_squares(sizes, (0.1, 1.0), (3 / 4, 4 / 3), draws)
        area, ratio = boxes[:, 2:].prod(dim=1) / (height * width), boxes[:, 3] / boxes[:, 2]
        assert (boxes >= 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= sizes + 1e-6).all()
        assert stats.kstest(area.numpy(), stats.uniform(0.1, 0.9).cdf).pvalue > 1e-3
        fits = area < 0.5  # every ratio fits
        assert stats.kstest(ratio[fits].log().numpy(), stats.uniform(-0.28768, 2 * 0.28768).cdf).pvalue > 1e-3
        whole = rounded_boxes(boxes, sizes)
        assert (whole - boxes).abs().max() <= 1
        assert (whole[:, :2] + whole[:, 2:] <= sizes).all()
