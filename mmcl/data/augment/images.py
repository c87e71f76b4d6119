"""Random changes of a batch of images, every sample with its own, on the device where the batch is.

What happens to a sample depends on its seed alone, and is distributed as by torchvision's ``v2`` transforms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mmcl.config.data import AugmentationConfig
from mmcl.data.augment.blur import blur
from mmcl.data.augment.colour import change_some, drop_colour, jitter, solarise
from mmcl.data.augment.geometry import Geometry
from mmcl.data.augment.parameters import NEUTRAL, Parameters, draw_parameters, on, row_by_row
from mmcl.data.augment.random_crop import PackedImages
from mmcl.data.augment.threads import in_threads

_CHUNK_BYTES = 2**19  # of views: on a CPU, what passes from step to step stays in the cache of a thread


class Augmentation:
    """Changes images at random as ``config`` says, and brings them to ``size`` × ``size``.

    In this order: ``RandomResizedCrop``, flips, rotation (see :class:`~mmcl.data.augment.geometry.Geometry`),
    ``ColorJitter``, ``RandomGrayscale``, ``GaussianBlur``, ``RandomSolarize``. Defaults leave an image of ``size`` as
    it is, and what one change draws does not depend on the others' settings.
    """

    def __init__(self, config: AugmentationConfig, size: int) -> None:
        self.config = config
        self.size = size
        kinds = config.kinds
        self._geometry = Geometry(
            size, any(kind.crops for kind in kinds), max(kind.rotate for kind in kinds), config.fill
        )

    def parameters(self, images: Tensor | PackedImages, seeds: Tensor, draws: Sequence[int] = (0,)) -> Parameters:
        """How N images are changed in each of the draws, all of the first image before those of the next."""
        squares = isinstance(images, Tensor)
        sizes = (PackedImages.of(images) if isinstance(images, Tensor) else images).sizes.cpu()
        drawn = [
            draw_parameters(self.config.of_draw(draw), sizes, seeds, draw, within_squares=squares) for draw in draws
        ]
        return row_by_row(drawn)

    @torch.no_grad()
    def __call__(self, images: Tensor, seeds: Tensor, draws: Sequence[int] = (0,)) -> Tensor:
        """Views of squares that were made before, uint8 (N, H, W, 3): float32 (N·draws, 3, ``size``, ``size``) in
        [0, 1], on the same device, all of the first image before those of the next.

        ``seeds`` (N,) int64 and the numbers of the draws choose the random numbers.
        """
        parameters = self.parameters(images, seeds, draws)
        return self._views(PackedImages.of(images), images, np.arange(len(images)), parameters)

    @torch.no_grad()
    def of_originals(self, images: PackedImages, side: int, seeds: Tensor, draws: Sequence[int] = (0,)) -> Tensor:
        """Views of N originals of different sizes, as the call gives views of squares. What is cropped out of those of
        ``side`` × ``side`` without being made smaller is not rounded to levels of 255."""
        images = images._replace(sizes=images.sizes.cpu())
        square = (images.sizes.numpy() == side).all(axis=1)
        squares = images if square.all() else images.take(torch.from_numpy(np.flatnonzero(square)))
        places = np.where(square, square.cumsum() - 1, -1)
        parameters = self.parameters(images, seeds, draws)
        return self._views(images, squares.packed.view(-1, side, side, 3), places, parameters)

    def _views(self, images: PackedImages, squares: Tensor, places: np.ndarray, parameters: Parameters) -> Tensor:
        """Views of N images, some of which are ``squares`` (S, H, W, 3) too: at ``places`` (N,) there, or at -1."""
        geometry, device = self._geometry, images.packed.device
        views = _empty((len(parameters), 3, self.size, self.size), device)
        rows = np.arange(len(places)).repeat(len(parameters) // max(1, len(places)))
        cut = (places[rows] < 0) | (parameters.boxes[:, 2:] > self.size).any(axis=1)
        with torch.autocast(device.type, enabled=False):
            if cut.any():
                samples = _by_order(np.flatnonzero(cut), parameters)
                of_cut = parameters.take(samples).rounded(images.sizes[rows[samples]])
                levels = geometry.cut(images, rows[samples], of_cut)
                self._fill(views, samples, of_cut, lambda part, of: geometry.of_cut(levels[part], of))
            if not cut.all():
                samples = _by_order(np.flatnonzero(~cut), parameters)
                sources = on(device, places[rows[samples]])
                of_squares = parameters.take(samples)
                self._fill(views, samples, of_squares, lambda part, of: geometry.of_squares(squares[sources[part]], of))
        return views

    def _fill(
        self,
        views: Tensor,
        samples: np.ndarray,
        parameters: Parameters,
        geometry: Callable[[slice, Parameters], Tensor],
    ) -> None:
        """Put samples into ``views`` (N, …), at ``samples`` (n,), in other colours. Their ``parameters`` are given, and
        ``geometry`` makes a part of them."""

        def change(part: slice) -> None:
            of = parameters.take(part)
            made = geometry(part, of)
            levels = made.flatten(2)
            jitter(levels, of.orders, of.factors)
            change_some(levels, of.grey, drop_colour)
            change_some(made, of.sigmas > 0, blur, of.sigmas)
            change_some(levels, of.solarised, solarise)
            if len(made) == 1:  # in one pass
                torch.clamp(made[0], 0.0, 1.0, out=views[samples[part.start]])
            else:
                views.index_copy_(0, on(views.device, samples[part]), made.clamp_(0.0, 1.0))

        in_threads(change, list(self._chunks(parameters, views.device)))

    def _chunks(self, parameters: Parameters, device: torch.device) -> Iterator[slice]:
        """Parts of the samples that are changed together. On a CPU a part has one order of colour jitter, so that all
        of its samples are changed in place."""
        if device.type != "cpu":
            yield slice(0, len(parameters))
            return
        most = max(1, _CHUNK_BYTES // (12 * self.size**2))
        starts = np.flatnonzero(np.diff(_orders(parameters), prepend=-2))
        for start, end in pairwise([*starts.tolist(), len(parameters)]):
            for first in range(start, end, most):
                yield slice(first, min(first + most, end))


def _orders(parameters: Parameters) -> np.ndarray:
    """(N,) a number of the order of the colour jitter; -1 where there is none."""
    changed = (parameters.factors != NEUTRAL).any(axis=1)
    return np.where(changed, parameters.orders @ (4 ** np.arange(4)), -1)


def _by_order(samples: np.ndarray, parameters: Parameters) -> np.ndarray:
    """Samples (n,), those with one order of colour jitter side by side."""
    return samples[_orders(parameters)[samples].argsort(kind="stable")]


def _empty(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Memory for a batch. On a CPU numpy asks for huge pages, and a batch is filled in a fifth of the time."""
    if device.type == "cpu":
        return torch.from_numpy(np.empty(shape, dtype=np.float32))
    return torch.empty(shape, device=device)
