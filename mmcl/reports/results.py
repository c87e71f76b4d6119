"""Scores laid out for reading: a setting, its directions, and a row a metric."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mmcl.evaluation.measured import ByDirection, Measured, by_direction
from mmcl.evaluation.metrics.display import Display


@dataclass(frozen=True)
class Row:
    """One metric of one direction, with what is known of its uncertainty and of chance."""

    name: str
    value: float
    interval: tuple[float, float] | None = None
    chance: float | None = None
    start: float | None = None
    """The value before training."""
    display: Display = field(default_factory=Display)

    @property
    def is_fraction(self) -> bool:
        """Whether it lies on the scale from 0 to 1 by its meaning, not by accident."""
        return self.display.is_fraction(self.name)

    @property
    def has_bar(self) -> bool:
        """Whether its value is the length of a bar."""
        return self.display.has_bar(self.name)


@dataclass(frozen=True)
class Direction:
    """What was found for one kind of query."""

    title: str
    size: str
    """How many queries against how many candidates; "" where that is not known."""
    rows: list[Row]
    remarks: list[str]
    """What was left out or counted as not found."""
    display: Display = field(default_factory=Display)

    @property
    def headline(self) -> list[Row]:
        """The rows to show first."""
        names = self.display.leads(row.name for row in self.rows)
        return [row for row in self.rows if row.name in names]

    @property
    def lower_is_better(self) -> list[str]:
        """The rows to show first of which the lower value is the better one, by name."""
        return [row.name for row in self.headline if self.display.is_lower_better(row.name)]

    @property
    def in_words(self) -> list[tuple[str, Row]]:
        """The rows that get a sentence, and how it begins."""
        return [(words, row) for row in self.rows if (words := self.display.sentence(row.name))]


@dataclass(frozen=True)
class Setting:
    """One set of data that a model was judged on."""

    title: str
    directions: list[Direction]


def from_scores(
    scores: Mapping[str, Mapping[str, Measured] | ByDirection], start: Mapping[str, float] = {}
) -> list[Setting]:
    """Scores with intervals and chance.

    Args:
        scores: {title: {direction: what was measured}, or scores that know their directions}.
        start: the metrics before training, keyed as in a training log: ``title/direction/metric``.
    """
    settings = []
    for title, found in scores.items():
        ways = found if isinstance(found, Mapping) else found.directions()
        directions = [_direction(title, way, measured, start, len(ways)) for way, measured in ways.items()]
        settings.append(Setting(title, directions))
    return settings


def from_evaluation(
    values: Mapping[str, float], displays: Mapping[str, Display], start: Mapping[str, float] = {}
) -> list[Setting]:
    """The flat ``dev/image_to_text/hit@1`` of a training log: no intervals, no chance.

    Args:
        values: by source, direction and metric.
        displays: of the sources, by name.
        start: the metrics before training, likewise.
    """
    sources: dict[str, dict[str, float]] = {}
    for key, value in values.items():
        if math.isfinite(value):
            source, _, rest = key.partition("/")
            sources.setdefault(source, {})[rest] = value
    scores = {source: by_direction(found, displays.get(source, Display())) for source, found in sources.items()}
    return from_scores(scores, start)


def definitions(settings: Sequence[Setting], displays: Iterable[Display]) -> list[tuple[str, str]]:
    """What the metrics that are shown mean, and those of other displays: names, and what is said of them."""
    shown = [direction.display for setting in settings for direction in setting.directions]
    return list(dict.fromkeys(each for display in (*shown, *displays) for each in display.definitions))


def title_of(way: str, ways: int) -> str:
    """What people read of a direction, of which there are ``ways``; a metric without one is the average over them."""
    return arrow(way) or ("average" if ways > 1 else "")


def split_key(key: str) -> tuple[str, str, str]:
    """``dev/image_to_text/hit@1`` as (source, direction, metric); the direction is "" where the key has none."""
    rest, _, metric = key.rpartition("/")
    source, _, way = rest.partition("/")
    return source, way, metric


def arrow(way: str) -> str:
    """``image_to_text`` as people write it: image → text; and ``space/image``: space: image."""
    return way.replace("_to_", " → ").replace("_", " ").replace("/", ": ")


def _direction(title: str, way: str, measured: Measured, start: Mapping[str, float], ways: int) -> Direction:
    chance, rows = measured.chance(), []
    for name, value in measured.metrics.items():
        if math.isfinite(value):
            low_high = measured.intervals.get(name)
            interval = None if low_high is None or not all(map(math.isfinite, low_high)) else low_high
            # Of a source with a single direction, the log may have the metrics without it.
            otherwise = start.get(f"{title}/{name}") if ways == 1 else None
            before = start.get(f"{title}/{way}/{name}" if way else f"{title}/{name}", otherwise)
            rows.append(Row(name, value, interval, chance.get(name), before, measured.display))
    return Direction(title_of(way, ways), measured.size, rows, list(measured.remarks), measured.display)
