"""Views: what of a row passes through a tower, and how it is changed at random before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from mmcl.config.data import AugmentationConfig
from mmcl.data.augment.images import Augmentation
from mmcl.data.augment.random_crop import PackedImages, central_squares, resized_crops
from mmcl.data.batches.batch import Batch, Inputs
from mmcl.data.identity import mix

Modality: TypeAlias = Literal["image", "text", "table", "label", "number"]
VALUES: Mapping[str, str] = {"label": "labels", "number": "values"}
"""Modalities that pass through no tower, each with the name of its tensor in a batch."""


class Transform(Protocol):
    """A random change of a batch, on the device where it is."""

    def __call__(self, inputs: Inputs, seeds: Tensor, draw: int, size: int | None) -> Inputs:
        """The changed inputs of N rows.

        Args:
            inputs: of the rows.
            seeds: (N,) int64, one a row and epoch.
            draw: number of the view among those of its column. What is drawn depends on seed and draw alone.
            size: of the view, in pixels; None: as the inputs.
        """


@dataclass(frozen=True)
class View:
    """One forward pass over a column of the rows.

    Attributes:
        column: whose items pass.
        tower: name of the tower.
        transform: random change in training; None: as they are.
        size: pixels of a side; None: those of the augmentation, see :attr:`side`.
        draw_of: name of a view before it whose random draw it shares, to change it once more; None: one of its own.
        count: independent draws of each row. Their inputs and embeddings are (N·count, …), those of the first row
            before those of the next.
    """

    column: str
    tower: str
    transform: Transform | None = None
    size: int | None = None
    count: int = 1
    draw_of: str | None = None

    @property
    def side(self) -> int | None:
        """Pixels of a side, by its own size or that of its augmentation; None: the tower's own."""
        return self.size or (self.transform.config.size if isinstance(self.transform, Augment) else None)

    @property
    def cuts(self) -> bool:
        """Whether it is cut out of the image, rather than what the tower sees in use."""
        if not isinstance(self.transform, Augment):
            return False
        return self.side is not None or any(kind.crops for kind in self.transform.config.kinds)


@dataclass(frozen=True)
class Extra:
    """Items beside a global batch, drawn from all rows: partners of none.

    Attributes:
        column: whose items they are.
        count: their number.
    """

    column: str
    count: int


@dataclass(frozen=True)
class Augment:
    """Random changes of images, as a :class:`Transform`.

    Attributes:
        config: what is changed, and how much.
        stream: images of one row with different ones are changed independently of each other.
    """

    config: AugmentationConfig
    stream: int = 0

    def __call__(self, inputs: Inputs, seeds: Tensor, draw: int, size: int | None) -> Inputs:
        return self.views(inputs, seeds, (draw,), size, None)

    def views(
        self, inputs: Inputs, seeds: Tensor, draws: Sequence[int], size: int | None, side: Callable[[], int] | None
    ) -> Inputs:
        """The changed inputs of N rows in several draws, all of the first row before those of the next.

        Args:
            inputs: of the rows, as squares or as originals.
            seeds: (N,) int64.
            draws: their numbers.
            size: of the views, in pixels; None: as the tower sees images.
            side: gives that size, where there are originals.
        """
        own = mix(seeds, self.stream) if self.stream else seeds
        if "packed" not in inputs:
            pixels = inputs["pixels"]
            return {"pixels": Augmentation(self.config, size or pixels.shape[1])(pixels, own, draws)}
        assert side is not None, "given where there are originals"
        augmentation = Augmentation(self.config, size or side())
        return {"pixels": augmentation.of_originals(PackedImages(**inputs), side(), own, draws)}


def make_views(
    views: Mapping[str, View], batch: Batch, *, change: bool, side: Callable[[str], int] | None = None
) -> dict[str, Inputs]:
    """The inputs of every view of a batch, and of its extra items, by their names.

    Args:
        views: by name.
        batch: on the device where it is to be changed.
        change: whether to apply transforms: in training only.
        side: of the square, in pixels, that an image tower of this name sees; needed for a batch of originals. Where a
            view is no random crop of them, it is the largest square in their centre.
    """
    made: dict[str, Inputs] = {}
    for name, numbers in draw_numbers(views).items():
        view = views[name]
        own = partial(side, view.tower) if side is not None else None
        inputs = batch.inputs[view.column]
        if change and isinstance(view.transform, Augment) and "features" not in inputs:
            # All draws at once, unless each is of another image.
            together = [numbers] if view.column not in batch.draws else [(number,) for number in numbers]
            parts = [
                view.transform.views(batch.drawn(view.column, of[0]), batch.seeds, of, view.side, own)
                for of in together
            ]
            made[name] = parts[0] if len(parts) == 1 else _row_by_row(parts)
            continue
        draws = [_draw(view, batch, number, change, own) for number in numbers]
        made[name] = draws[0] if len(draws) == 1 else _row_by_row(draws)
    return made | batch.extra


def draw_numbers(views: Mapping[str, View]) -> dict[str, range]:
    """The numbers of each view's draws among those of its column, from 0."""
    numbers: dict[str, range] = {}
    drawn: Counter[str] = Counter()
    for name, view in views.items():
        if view.draw_of is not None:
            numbers[name] = numbers[view.draw_of]
        else:
            numbers[name] = range(drawn[view.column], drawn[view.column] + view.count)
            drawn[view.column] += view.count
    return numbers


def _draw(view: View, batch: Batch, draw: int, change: bool, side: Callable[[], int] | None) -> Inputs:
    inputs = batch.drawn(view.column, draw)
    if "packed" in inputs:
        assert side is not None, "given where there are originals"
        originals = PackedImages(**inputs)
        boxes = central_squares(originals.sizes)
        squares = resized_crops(originals, torch.arange(len(boxes)), boxes, side())
        inputs = {"pixels": squares.permute(0, 2, 3, 1)}
    if not change or view.transform is None or "features" in inputs:
        return inputs
    seeds = batch.seeds.to(next(iter(inputs.values())).device, non_blocking=True)
    return view.transform(inputs, seeds, draw, view.side)


def _row_by_row(draws: list[Inputs]) -> Inputs:
    """Several draws of N rows as one, all of the first row before all of the next."""
    return {name: torch.stack([draw[name] for draw in draws], dim=1).flatten(0, 1) for name in draws[0]}
