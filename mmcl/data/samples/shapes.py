"""Two coloured shapes on white with a caption, drawn from a seed: a data set that needs no network.

Some pairs of a colour and a shape are never trained on, though the colour and the shape are, each in other pairs. The
images with such a pair are ``dev_unseen`` and ``test_unseen``.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from mmcl.data.samples.sample import Sample
from mmcl.runtime.progress import progress

SPLITS = {"train": 4000, "dev": 400, "dev_unseen": 200, "test": 400, "test_unseen": 200}
COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 0),
    "yellow": (250, 215, 30),
    "green": (44, 150, 60),
    "blue": (40, 90, 220),
    "purple": (140, 60, 180),
    "brown": (125, 75, 45),
    "black": (20, 20, 20),
}
SIZES = {"small": 0.10, "large": 0.20}  # radius as a share of the image's side
_SIDE = 64
_FINER = 4  # drawn this much larger and averaged down, which smooths the edges

Point = tuple[float, float]


def _polygon(corners: int, turn: float, inner: float = 1.0) -> list[Point]:
    """Corners on the unit circle, the first at ``turn`` degrees; every second one at the radius ``inner``."""
    angles = [math.radians(turn + 360 * i / corners) for i in range(corners)]
    radii = [inner if i % 2 else 1.0 for i in range(corners)]
    return [(r * math.cos(a), r * math.sin(a)) for a, r in zip(angles, radii, strict=True)]


def _heart() -> list[Point]:
    times = [2 * math.pi * i / 60 for i in range(60)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in times
    ]


_THIRD = 1 / 3
_OUTLINES: dict[str, list[Point]] = {  # y grows downwards, as in the image
    "circle": _polygon(90, 0),
    "ring": _polygon(90, 0),
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "diamond": _polygon(4, 0),
    "triangle": _polygon(3, -90),
    "star": _polygon(10, -90, inner=0.4),
    "cross": [
        *((-_THIRD, -1), (_THIRD, -1), (_THIRD, -_THIRD), (1, -_THIRD), (1, _THIRD), (_THIRD, _THIRD)),
        *((_THIRD, 1), (-_THIRD, 1), (-_THIRD, _THIRD), (-1, _THIRD), (-1, -_THIRD), (-_THIRD, -_THIRD)),
    ],
    "heart": _heart(),
}
SHAPES = tuple(_OUTLINES)
HELD_OUT = frozenset((colour, SHAPES[(3 * i + 1) % len(SHAPES)]) for i, colour in enumerate(COLOURS))

# Relation to (its inverse, the step from the second shape to the first).
_RELATIONS: dict[str, tuple[str, Point]] = {
    "left of": ("right of", (-1, 0)),
    "right of": ("left of", (1, 0)),
    "above": ("below", (0, -1)),
    "below": ("above", (0, 1)),
}


class Thing(NamedTuple):
    """One shape of an image."""

    size: str
    colour: str
    shape: str

    @property
    def held_out(self) -> bool:
        """Whether no training image shows this colour in this shape."""
        return (self.colour, self.shape) in HELD_OUT

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


class Scene(NamedTuple):
    """``first`` stands in ``relation`` to ``second``."""

    first: Thing
    relation: str
    second: Thing

    @property
    def caption(self) -> str:
        """For example "a small red circle left of a large blue square"."""
        return f"{self.first} {self.relation} {self.second}"

    def inverse(self) -> Scene:
        """The same image, described from the other shape."""
        return Scene(self.second, _RELATIONS[self.relation][0], self.first)


class Placed(NamedTuple):
    """A shape where it is drawn: centre and radius are shares of the image's side."""

    thing: Thing
    centre: Point
    radius: float


def place(scene: Scene, rng: random.Random) -> tuple[Placed, Placed]:
    """Both shapes of a scene at places that ``rng`` moves a little."""
    dx, dy = _RELATIONS[scene.relation][1]

    def placed(thing: Thing, sign: int) -> Placed:
        radius = SIZES[thing.size] * rng.uniform(0.9, 1.1)
        x = 0.5 + sign * 0.24 * dx + rng.uniform(-0.02, 0.02) + (0 if dx else rng.uniform(-0.2, 0.2))
        y = 0.5 + sign * 0.24 * dy + rng.uniform(-0.02, 0.02) + (0 if dy else rng.uniform(-0.2, 0.2))
        return Placed(thing, (x, y), radius)

    return placed(scene.first, 1), placed(scene.second, -1)


def draw(shapes: Sequence[Placed]) -> bytes:
    """A PNG of 64 × 64."""
    image = _canvas("RGB", "white")
    for placed in shapes:
        _fill(image, placed, COLOURS[placed.thing.colour], "white")
    file = io.BytesIO()
    _reduced(image).save(file, "PNG")
    return file.getvalue()


def annotate(shapes: Sequence[Placed]) -> dict[str, Any]:
    """What an image shows, for detection and segmentation.

    Returns:
        ``shapes``: their names; ``boxes``: [left, top, right, bottom] of each in pixels; ``mask``: a PNG of one
        channel, in which 0 is the background and i + 1 is ``SHAPES[i]``. A pixel is of a shape that covers half of it.
    """
    classes = np.zeros((_SIDE, _SIDE), np.uint8)
    boxes = []
    for placed in shapes:
        image = _canvas("L", 0)
        _fill(image, placed, 255, 0)
        inside = np.asarray(_reduced(image)) >= 128
        columns, lines = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
        boxes.append([int(columns[0]), int(lines[0]), int(columns[-1]) + 1, int(lines[-1]) + 1])
        classes[inside] = 1 + SHAPES.index(placed.thing.shape)
    file = io.BytesIO()
    Image.fromarray(classes).save(file, "PNG")
    return {"shapes": [placed.thing.shape for placed in shapes], "boxes": boxes, "mask": file.getvalue()}


def _canvas(mode: str, colour: Any) -> Image.Image:
    return Image.new(mode, (_SIDE * _FINER, _SIDE * _FINER), colour)


def _reduced(canvas: Image.Image) -> Image.Image:
    return canvas.resize((_SIDE, _SIDE), Image.Resampling.BOX)


def _fill(canvas: Image.Image, placed: Placed, colour: Any, background: Any) -> None:
    side, (x, y), outline = canvas.width, placed.centre, _OUTLINES[placed.thing.shape]
    radii = [(placed.radius, colour)] + [(placed.radius / 2, background)] * (placed.thing.shape == "ring")
    for radius, fill in radii:
        corners = [(side * (x + radius * across), side * (y + radius * down)) for across, down in outline]
        ImageDraw.Draw(canvas).polygon(corners, fill=fill)


def rows(
    seed: int = 0,
    splits: dict[str, int] = SPLITS,
    advance: Callable[[int], None] | None = None,
    *,
    annotated: bool = False,
) -> dict[str, Any]:
    """Split name to rows (id, image, text, concept, vendor); the same seed gives the same bytes.

    No scene is in two splits, nor twice in one, not even described from its other shape.

    Args:
        seed: of scenes and places.
        splits: name of each to the number of its rows.
        advance: called with 1 after each image.
        annotated: whether the rows have what :func:`annotate` returns as well.
    """
    rng = random.Random(seed)
    taken: set[Scene] = set()
    made: dict[str, list[dict[str, Any]]] = {}
    for split, count in splits.items():
        made[split] = []
        while len(made[split]) < count:
            scene = _scene(rng, unseen=split.endswith("_unseen"))
            if scene in taken:
                continue
            taken.update((scene, scene.inverse()))
            placed = place(scene, rng)
            row = {
                "id": f"{split}-{len(made[split]):04d}",
                "image": draw(placed),
                "text": scene.caption,
                "concept": f"{scene.first.colour} {scene.first.shape}",
                "vendor": "shapes",
            }
            made[split].append(row | (annotate(placed) if annotated else {}))
            if advance:
                advance(1)
    return made


def _scene(rng: random.Random, unseen: bool) -> Scene:
    """A random scene; its first shape is a held-out pair if ``unseen``, otherwise neither is."""
    while True:
        first, second = (
            Thing(rng.choice(tuple(SIZES)), rng.choice(tuple(COLOURS)), rng.choice(SHAPES)) for _ in range(2)
        )
        if first.held_out == unseen and not (second.held_out and not unseen) and first != second:
            return Scene(first, rng.choice(tuple(_RELATIONS)), second)


def build(folder: Path, show_progress: bool | None = None) -> dict[str, Any]:
    """Write the five splits as Parquet into ``folder``."""
    with progress("draw shapes", total=sum(SPLITS.values()), unit="images", show=show_progress) as advance:
        made = rows(splits=SPLITS, advance=advance)
    for split, content in made.items():
        pq.write_table(pa.Table.from_pylist(content), folder / f"{split}.parquet")
    return {"packages": {}, "seed": 0, "rows": {split: len(content) for split, content in made.items()}}


SAMPLE = Sample(
    name="shapes",
    version="1",
    summary="two coloured shapes and a caption; drawn on this machine, some colour-shape pairs held out",
    terms="drawn by mmcl (Apache-2.0); no restriction on the images.",
    download_mb=0.0,
    build=build,
)
