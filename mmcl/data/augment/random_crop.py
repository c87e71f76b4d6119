"""Random crops of images of different sizes: where they are cut out, and how they become views of one size."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.data.augment.threads import in_threads

_ATTEMPTS = 10
CROP_DRAWS = 2 * _ATTEMPTS
_A_THREAD = 16  # crops, at least, for which a thread is worth its start
_CHUNK_BYTES = 2**28  # on a GPU, of what is gathered at a time, indices included


class PackedImages(NamedTuple):
    """N images of different sizes.

    Attributes:
        sizes: (N, 2) int64, heights and widths.
        packed: uint8 (P, 3), the pixels of all images, one image after the other, row by row.
    """

    sizes: Tensor
    packed: Tensor

    @classmethod
    def of(cls, squares: Tensor) -> PackedImages:
        """Images of one size, (N, H, W, 3)."""
        count, height, width, _ = squares.shape
        return cls(torch.tensor([[height, width]]).expand(count, 2), squares.reshape(-1, 3))

    @property
    def starts(self) -> Tensor:
        """(N,) the place in ``packed`` of each image's first pixel."""
        areas = self.sizes.prod(dim=1)
        return areas.cumsum(0) - areas

    def images(self) -> list[Tensor]:
        """Each as (H, W, 3)."""
        parts = self.packed.split(self.sizes.prod(dim=1).tolist())
        return [part.view(height, width, 3) for part, (height, width) in zip(parts, self.sizes.tolist(), strict=True)]

    def take(self, rows: slice | Tensor) -> PackedImages:
        """Those of some rows."""
        images = self.images()
        chosen = images[rows] if isinstance(rows, slice) else [images[row] for row in rows.tolist()]
        return PackedImages(self.sizes[rows], torch.cat([self.packed[:0], *(image.view(-1, 3) for image in chosen)]))


def crop_boxes(sizes: Tensor, scale: tuple[float, float], ratio: tuple[float, float], draws: Tensor) -> Tensor:
    """Where torchvision's ``RandomResizedCrop`` cuts: (N, 4) int64 top, left, height and width.

    The area is uniform in ``scale`` and the aspect ratio log-uniform in ``ratio``; both are drawn again, up to ten
    times, until the crop fits into the image. Else it is the largest one in the centre whose ratio is in ``ratio``.

    Args:
        sizes: (N, 2) heights and widths of the images.
        scale: of the area, as a share of the image.
        ratio: width by height.
        draws: (N, 2 + ``CROP_DRAWS``) in [0, 1): the place in x and in y, then area and ratio of each attempt.
    """
    # On a CPU, so that a row has the same crop on every device; some have no float64 either.
    height, width = sizes.cpu().double().T
    draws = draws.cpu().double()
    area = (scale[0] + (scale[1] - scale[0]) * draws[:, 2::2]) * (height * width)[:, None]
    low, high = map(math.log, ratio)
    aspect = (low + (high - low) * draws[:, 3::2]).exp()
    tall, wide = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (tall > 0) & (wide > 0) & (tall <= height[:, None]) & (wide <= width[:, None])
    chosen = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    found = fits.any(dim=1)
    tall = torch.where(found, tall.gather(1, chosen)[:, 0], torch.minimum(height, (width / ratio[0]).round()))
    wide = torch.where(found, wide.gather(1, chosen)[:, 0], torch.minimum(width, (height * ratio[1]).round()))
    top = torch.where(found, draws[:, 1] * (height - tall + 1), (height - tall) / 2).floor()
    left = torch.where(found, draws[:, 0] * (width - wide + 1), (width - wide) / 2).floor()
    return torch.stack([top, left, tall, wide], dim=1).long().to(sizes.device)


def boxes_within_squares(
    sizes: Tensor, scale: tuple[float, float], ratio: tuple[float, float], draws: Tensor
) -> Tensor:
    """(N, 4) float64 top, left, height and width of crops that may begin and end within a pixel.

    The area is uniform in ``scale``, and the aspect ratio log-uniform in that part of ``ratio`` which fits into the
    image. Given the area it is distributed as torchvision's, which draws both again where they do not fit, so that
    large areas are rarer there.

    Args:
        sizes: (N, 2) heights and widths of the images.
        scale: of the area, as a share of the image.
        ratio: width by height.
        draws: (N, 4) in [0, 1): area, ratio, and the place in x and in y.
    """
    height, width = sizes.double().T
    draws = draws.double()
    area = scale[0] + (scale[1] - scale[0]) * draws[:, 0]
    aspect = width / height
    fits = (area * aspect).log(), (aspect / area).log()  # the tallest and the widest crop of this area
    low, high = (torch.full_like(area, math.log(end)).clamp(*fits) for end in ratio)
    chosen = (low + (high - low) * draws[:, 1]).exp()
    wide = width * (area * chosen / aspect).sqrt().clamp(max=1)
    tall = height * (area / chosen * aspect).sqrt().clamp(max=1)
    return torch.stack([draws[:, 3] * (height - tall), draws[:, 2] * (width - wide), tall, wide], dim=1)


def rounded_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes (n, 4) as int64, within images of ``sizes`` (n, 2)."""
    lengths = boxes[:, 2:].round().clamp(min=1)
    corners = (boxes[:, :2] + (boxes[:, 2:] - lengths) / 2).round().clamp(min=0)
    return torch.cat([torch.minimum(corners, sizes - lengths), lengths], dim=1).long()


def central_squares(sizes: Tensor) -> Tensor:
    """The largest square in the centre of each image, as :func:`crop_boxes` gives boxes."""
    side = sizes.amin(dim=1)
    top, left = ((sizes - side[:, None]) // 2).T
    return torch.stack([top, left, side, side], dim=1)


def resized_crops(
    images: PackedImages, rows: Tensor, boxes: Tensor, size: int, fill: int = 255, flips: Tensor | None = None
) -> Tensor:
    """Crops at ``boxes`` (n, 4) of the images ``rows`` (n,), as uint8 (n, 3, ``size``, ``size``): bilinear, with
    antialiasing where a crop is larger than ``size``, as torchvision's ``resized_crop``. What lies outside of an image
    has level ``fill``. Where ``flips`` (n, 2) is true, top and bottom or left and right are exchanged.
    """
    if flips is None:
        flips = torch.zeros(len(boxes), 2, dtype=torch.bool)
    # One at a time on a CPU: torch's kernel for uint8 is many times as fast there as products with dense weights.
    make = _one_by_one if images.packed.device.type == "cpu" else batched_crops
    return make(images, rows, boxes, size, fill, flips)


def _one_by_one(images: PackedImages, rows: Tensor, boxes: Tensor, size: int, fill: int, flips: Tensor) -> Tensor:
    def crop(number: int) -> None:
        image, (top, left, height, width) = sources[places[number]], corners[number]
        below, beside = top + height - image.shape[0], left + width - image.shape[1]
        part = image[max(top, 0) : top + height, max(left, 0) : left + width]
        outside = [max(-left, 0), max(beside, 0), max(-top, 0), max(below, 0)]
        part = F.pad(part, [0, 0, *outside], value=fill) if any(outside) else part.contiguous()
        # As an image with channels last, and contiguous so: torch resamples it in half the time.
        view = F.interpolate(part[None].permute(0, 3, 1, 2), (size, size), mode="bilinear", antialias=True)[0]
        down, across = steps[number]
        views[number] = view.numpy()[:, ::down, ::across]  # torch would copy with threads of its own

    sources, places, corners, steps = images.images(), rows.tolist(), boxes.tolist(), (1 - 2 * flips.int()).tolist()
    views = np.empty((len(boxes), 3, size, size), dtype=np.uint8)
    in_threads(crop, range(len(boxes)), _A_THREAD)
    return torch.from_numpy(views)


def batched_crops(images: PackedImages, rows: Tensor, boxes: Tensor, size: int, fill: int, flips: Tensor) -> Tensor:
    """:func:`resized_crops` by two matrix products a crop, for a device that is slow at many small steps."""
    device = images.packed.device
    views = torch.empty(len(boxes), 3, size, size, dtype=torch.uint8, device=device)
    if len(boxes) == 0:
        return views
    tallest, widest = boxes[:, 2:].amax(dim=0).tolist()
    boxes, sizes, starts = (numbers.to(device) for numbers in (boxes, images.sizes[rows], images.starts[rows]))
    # An index, a bool, three levels and their floats for each pixel; then the rows of the first product.
    chunk = max(1, _CHUNK_BYTES // (tallest * (24 * widest + 12 * size)))
    down, across = (torch.arange(longest, device=device) for longest in (tallest, widest))
    for first in range(0, len(boxes), chunk):
        part = slice(first, first + chunk)
        (top, left, height, width), (tall, wide) = boxes[part, :, None].unbind(1), sizes[part, :, None].unbind(1)
        y, x = top + down, left + across
        inside = ((y >= 0) & (y < tall))[:, :, None] & ((x >= 0) & (x < wide))[:, None]
        y = torch.minimum(y.clamp(min=0), tall - 1) * wide
        x = torch.minimum(x.clamp(min=0), wide - 1)
        levels = images.packed[starts[part, None, None] + y[:, :, None] + x[:, None]]
        levels = torch.where(inside[..., None], levels, fill).permute(0, 3, 1, 2).float()
        vertical, horizontal = _weights(height, size, tallest), _weights(width, size, widest)
        views[part] = (vertical[:, None] @ (levels @ horizontal.mT[:, None])).round_().to(torch.uint8)
    flip(views, flips.numpy())
    return views


def flip(images: Tensor, flips: np.ndarray) -> None:
    """Exchange top and bottom or left and right of images (n, C, H, W), in place, where ``flips`` (n, 2) is true."""
    for chosen, dim in zip(flips.T, (2, 3), strict=True):
        if chosen.any():
            rows = torch.from_numpy(np.flatnonzero(chosen)).to(images.device)
            images.index_copy_(0, rows, images[rows].flip(dim))


def _weights(lengths: Tensor, size: int, longest: int) -> Tensor:
    """(n, ``size``, ``longest``) shares of the pixels of lines of ``lengths`` (n, 1) in lines of ``size`` pixels."""
    lines = torch.arange(longest, device=lengths.device) + 0.5
    step = (lengths / size)[..., None]  # (n, 1, 1) pixels of a line for one of the view
    centres = (torch.arange(size, device=lengths.device) + 0.5)[:, None] * step
    weights = (1 - (lines - centres).abs() / step.clamp(min=1)).clamp(min=0)
    weights = weights * (lines < lengths[..., None])
    return weights / weights.sum(dim=2, keepdim=True)
