"""Random changes of a batch of images, every sample with its own, on the device where the batch is.

Brightness, contrast, saturation, hue and loss of colour are composed into one affine map of RGB. What happens to a
sample depends on its seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.config.data import AugmentationConfig
from mmcl.data.augment.random_crop import CROP_DRAWS, PackedImages, central_squares, crop_boxes, resized_crops
from mmcl.data.identity import uniforms

_LUMA = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601; the sum is 1, so that greys stay as they are
_YIQ = torch.stack([_LUMA, torch.tensor([0.5959, -0.2746, -0.3213]), torch.tensor([0.2115, -0.5227, 0.3112])])
_CHUNK_BYTES = 2**21  # on a CPU, what passes from step to step stays in the cache: twice as fast as a whole batch
_GEOMETRY, _COLOUR, _BLUR, _DRAWS = slice(0, 6), slice(6, 12), slice(12, 14), 14  # each change has its own draws
# Of a crop of an original: its place, and area and ratio of each attempt, the first of them those of other crops.
_CROP = [2, 3, 0, 1, *range(_DRAWS, _DRAWS + CROP_DRAWS - 2)]


class Augmentation:
    """Changes images at random as ``config`` says, and brings them to ``size`` × ``size``.

    - Crop of an original, see :func:`~mmcl.data.augment.random_crop.crop_boxes`: torchvision's ``RandomResizedCrop``.
    - Crop of a square that was made before: its area is uniform in ``crop_scale``, its aspect ratio log-uniform in that
      part of ``crop_ratio`` which fits into the image. Given the area the ratio is distributed as torchvision's, which
      draws both again where they do not fit, so that large areas are rarer there.
    - Flip, then rotation about the crop's centre. Corners that turn in show the image beyond the crop, and ``fill``
      beyond the image. All resampling is bilinear, with antialiasing where a crop is larger than ``size``.
    - Brightness, contrast, saturation and hue by torchvision's factors, always in that order. Hue turns the plane of
      YIQ, which keeps luma, rather than that of HSV; values are clamped to [0, 1] at the end and not between.
    - Loss of colour, then Gaussian blur, cut off at three times the largest ``blur_sigma``, mirrored at the edge.

    Defaults leave an image of ``size`` as it is, and what one change draws does not depend on the others' settings.
    """

    def __init__(self, config: AugmentationConfig, size: int) -> None:
        self.config = config
        self.size = size
        strengths = (config.brightness, config.contrast, config.saturation, config.hue)
        self._recolours = config.greyscale > 0 or (max(strengths) > 0 and config.jitter_prob > 0)
        self._changes = config != AugmentationConfig(fill=config.fill)

    @torch.no_grad()
    def __call__(self, images: Tensor, seeds: Tensor, stream: int = 0) -> Tensor:
        """Views of ``images``, uint8 (N, H, W, 3): float32 (N, 3, ``size``, ``size``) in [0, 1], on the same device.

        ``seeds`` (N,) int64 and ``stream`` choose the random numbers: another stream gives another view.
        """
        with torch.autocast(images.device.type, enabled=False):
            draws = uniforms(seeds, _DRAWS, stream).to(images.device)
            return self._views(draws, images.shape[1] * images.shape[2], self._of_squares(images, draws))

    @torch.no_grad()
    def of_originals(self, images: PackedImages, side: int, seeds: Tensor, stream: int = 0) -> Tensor:
        """Views of originals of different sizes, as the call gives views of squares. An image of ``side`` × ``side`` is
        such a square: nothing of it was cut off, and its views are those of the call."""
        square = (images.sizes == side).all(dim=1)
        squares, others = square.nonzero()[:, 0], (~square).nonzero()[:, 0]
        if len(squares) == 0:
            return self._of_others(images, seeds, stream)
        views = torch.empty(len(square), 3, self.size, self.size, device=images.packed.device)
        views[squares] = self(images.take(squares).packed.view(-1, side, side, 3), seeds[squares], stream)
        if len(others):
            views[others] = self._of_others(images.take(others), seeds[others], stream)
        return views

    def _of_others(self, images: PackedImages, seeds: Tensor, stream: int) -> Tensor:
        with torch.autocast(images.packed.device.type, enabled=False):
            draws = uniforms(seeds, _DRAWS + CROP_DRAWS - 2, stream).to(images.packed.device)
            if self.config.crops:
                boxes = crop_boxes(images.sizes, self.config.crop_scale, self.config.crop_ratio, draws[:, _CROP])
            else:
                boxes = central_squares(images.sizes)
            return self._views(draws, 0, self._of_boxes(images, boxes, draws))

    def _views(self, draws: Tensor, pixels: int, geometry: Callable[[slice], Tensor]) -> Tensor:
        """What ``geometry`` makes of each part of N images of so many ``pixels``, in other colours and blurred."""
        device, count = draws.device, len(draws)
        matrices, pulls = self._colours(draws[:, _COLOUR])
        out = torch.empty(count, 3, self.size, self.size, device=device)
        chunk = max(1, _CHUNK_BYTES // (12 * max(pixels, self.size**2))) if device.type == "cpu" else max(1, count)
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            view = geometry(part)
            if self._recolours:
                view = self._recolour(view, matrices[part], pulls[part])
            if self.config.blur > 0:
                view = self._blur(view, draws[part, _BLUR])
            out[part] = view.clamp_(0.0, 1.0) if self._changes else view
        return out

    def _of_squares(self, images: Tensor, draws: Tensor) -> Callable[[slice], Tensor]:
        """Crop, flip and rotation of parts of (N, H, W, 3), composed: the image is resampled once."""
        _, height, width, _ = images.shape
        crops = self._crops(draws, width / height)
        places, flips = self._places(draws, *crops.T), draws[:, 4] < self.config.flip
        resamples = self.config.crops or self.config.rotate > 0 or not height == width == self.size
        shrinks = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        if self.size < max(height, width):
            shrinks = (crops[:, :2] * crops.new_tensor([width, height]) > self.size).any(dim=1)

        def geometry(part: slice) -> Tensor:
            view = images[part].permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
            view = self._resample(view, places[part]) if resamples else self._flip(view, flips[part])
            if len(rows := shrinks[part].nonzero()[:, 0]):
                chosen = images[part][rows]
                sizes = torch.tensor([[height, width]], device=images.device).expand(len(rows), 2)
                packed = PackedImages(sizes, chosen.reshape(-1, 3))
                boxes = _pixel_boxes(crops[part][rows], height, width)
                view[rows] = self._of_boxes(packed, boxes, draws[part][rows])(slice(None))
            return view

        return geometry

    def _of_boxes(self, images: PackedImages, boxes: Tensor, draws: Tensor) -> Callable[[slice], Tensor]:
        """Flip and rotation of parts of the crops at ``boxes``. One that is turned is cut out with a margin as wide as
        its corners need, and resampled again."""
        flips, fill = draws[:, 4] < self.config.flip, round(255 * self.config.fill)
        steepest = math.radians(min(self.config.rotate, 45))
        spread = math.cos(steepest) + math.sin(steepest)
        margins = (boxes[:, 2:] * ((spread - 1) / 2)).ceil().long()
        cut = torch.cat([boxes[:, :2] - margins, boxes[:, 2:] + 2 * margins], dim=1)
        views = resized_crops(images, cut, math.ceil(self.size * spread), fill)
        height, width = (boxes[:, 2:] / cut[:, 2:]).T
        places = self._places(draws, width, height, torch.zeros_like(width), torch.zeros_like(height))

        def geometry(part: slice) -> Tensor:
            view = views[part].float().div_(255)
            return self._resample(view, places[part]) if self.config.rotate > 0 else self._flip(view, flips[part])

        return geometry

    def _flip(self, view: Tensor, flips: Tensor) -> Tensor:
        if self.config.flip > 0:
            view[flips] = view[flips].flip(3)
        return view

    def _resample(self, view: Tensor, places: Tensor) -> Tensor:
        """Crop, flip and rotate (n, 3, H, W) to (n, 3, size, size)."""
        axis = (2 * torch.arange(self.size, device=view.device) + 1) / self.size - 1  # centres of pixels
        down = places[:, :, 1, None] * axis + places[:, :, 2, None]
        grid = places[:, :, 0, None, None] * axis + down[..., None]  # (n, 2, size, size): where in x and y to look
        grid = grid.permute(0, 2, 3, 1)
        if (
            self.config.rotate == 0
        ):  # nothing outside is visible, but the outer half of a pixel is: it goes on to the edge
            return F.grid_sample(view, grid, padding_mode="border", align_corners=False)
        view -= self.config.fill  # so that zeros outside are the fill
        return F.grid_sample(view, grid, padding_mode="zeros", align_corners=False).add_(self.config.fill)

    def _crops(self, draws: Tensor, aspect: float) -> Tensor:
        """(n, 4) width, height and centre in x and y of crops of an image that runs from -1 to 1 in both; ``aspect`` is
        the image's W / H."""
        config = self.config
        smallest, largest = config.crop_scale
        area = smallest + (largest - smallest) * draws[:, 0]
        fits = (area * aspect).log(), (aspect / area).log()  # the widest and the tallest crop of this area
        low, high = (torch.full_like(area, math.log(ratio)).clamp(*fits) for ratio in config.crop_ratio)
        ratio = (low + (high - low) * draws[:, 1]).exp()
        width = (area * ratio / aspect).sqrt().clamp(max=1.0)
        height = (area / ratio * aspect).sqrt().clamp(max=1.0)
        x = (2 * draws[:, 2] - 1) * (1 - width)
        y = (2 * draws[:, 3] - 1) * (1 - height)
        return torch.stack([width, height, x, y], dim=1)

    def _places(self, draws: Tensor, width: Tensor, height: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """(n, 2, 3) affine maps from view to image: of crops as in :meth:`_crops`, flipped and turned."""
        side = torch.where(draws[:, 4] < self.config.flip, -1.0, 1.0)
        angle = math.radians(self.config.rotate) * (2 * draws[:, 5] - 1)
        cos, sin = angle.cos(), angle.sin()
        rows = [width * side * cos, -width * side * sin, x, height * sin, height * cos, y]
        return torch.stack(rows, dim=1).view(-1, 2, 3)

    def _colours(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 3, 3) maps of RGB, and (n,) shares of the mean luma that contrast adds, which no later change moves."""
        config = self.config
        strengths = torch.tensor([config.brightness, config.contrast, config.saturation, config.hue])
        shifts = (2 * draws[:, 1:5] - 1) * strengths.to(draws)
        shifts = torch.where(draws[:, :1] < config.jitter_prob, shifts, 0.0)
        brightness, contrast, saturation = (1 + shifts[:, :3]).clamp(min=0.0).T
        luma = _LUMA.to(draws.device).expand(3, 3)
        matrix = hue_rotation(shifts[:, 3]) @ torch.lerp(luma, torch.eye(3).to(luma), saturation[:, None, None])
        matrix = torch.where((draws[:, 5] < config.greyscale)[:, None, None], luma @ matrix, matrix)
        return matrix * (brightness * contrast)[:, None, None], brightness * (1 - contrast)

    def _recolour(self, view: Tensor, matrices: Tensor, pulls: Tensor) -> Tensor:
        flat = view.flatten(2)
        if self.config.contrast > 0:
            pulls = pulls * (flat.mean(2) @ _LUMA.to(view.device))
        return torch.baddbmm(pulls[:, None, None].expand(-1, 3, 1), matrices, flat).view_as(view)

    def _blur(self, view: Tensor, draws: Tensor) -> Tensor:
        chosen = (draws[:, 0] < self.config.blur).nonzero()[:, 0]
        if len(chosen) == 0:
            return view
        low, high = self.config.blur_sigma
        sigma = (low + (high - low) * draws[chosen, 1]).to(view.device)
        chosen = chosen.to(view.device)
        view[chosen] = gaussian_blur(view[chosen], sigma, math.ceil(3 * high))
        return view


def _pixel_boxes(crops: Tensor, height: int, width: int) -> Tensor:
    """(n, 4) top, left, height and width in whole pixels of crops as :meth:`Augmentation._crops` gives them."""
    extent = crops.new_tensor([height, width])
    lengths = (crops[:, [1, 0]] * extent).round().clamp(min=1)
    corners = ((crops[:, [3, 2]] + 1) / 2 * extent - lengths / 2).round().clamp(min=0)
    return torch.cat([torch.minimum(corners, extent - lengths), lengths], dim=1).long()


def hue_rotation(shift: Tensor) -> Tensor:
    """(n, 3, 3) maps of RGB that turn the hue by ``shift`` (n,) of the colour circle and keep luma; exactly I for 0."""
    cos, sin = (2 * math.pi * shift).cos(), (2 * math.pi * shift).sin()
    zero = torch.zeros_like(shift)
    turn = torch.stack([zero, zero, zero, zero, cos - 1, sin, zero, -sin, cos - 1], dim=1).view(-1, 3, 3)
    yiq = _YIQ.to(shift.device)
    return torch.eye(3, device=shift.device) + torch.linalg.inv(yiq) @ turn @ yiq


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur float ``images`` (n, C, H, W) with standard deviations ``sigma`` (n,) in pixels, mirrored at the edge."""
    count, channels, height, width = images.shape
    radius = min(radius, height - 1, width - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernels = torch.softmax(-0.5 * (offsets / sigma[:, None]) ** 2, dim=1).repeat_interleave(channels, dim=0)
    planes = F.pad(images.reshape(1, count * channels, height, width), (radius,) * 4, mode="reflect")
    planes = F.conv2d(planes, kernels[:, None, None, :], groups=count * channels)
    planes = F.conv2d(planes, kernels[:, None, :, None], groups=count * channels)
    return planes.view_as(images)
