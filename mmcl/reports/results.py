"""Scores laid out for reading: a setting, its directions, and a row a metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mmcl.evaluation import Scores, StsScores
from mmcl.evaluation.metrics.display import in_words, is_fraction, with_bars


@dataclass(frozen=True)
class Row:
    """One metric of one direction, with what is known of its uncertainty and of chance."""

    name: str
    value: float
    interval: tuple[float, float] | None = None
    chance: float | None = None
    start: float | None = None
    """The value before training."""

    @property
    def is_fraction(self) -> bool:
        """Whether it lies on the scale from 0 to 1 by its meaning, not by accident."""
        return is_fraction(self.name)


@dataclass(frozen=True)
class Direction:
    """What was found for one kind of query."""

    title: str
    size: str
    """How many queries against how many candidates; "" where that is not known."""
    rows: list[Row]
    remarks: list[str]
    """What was left out or counted as not found."""

    @property
    def headline(self) -> list[Row]:
        """The rows that get a bar."""
        names = with_bars(row.name for row in self.rows)
        return [row for row in self.rows if row.name in names]

    @property
    def in_words(self) -> list[tuple[str, Row]]:
        """The rows that get a sentence, and how it begins."""
        return [(words, row) for row in self.rows if (words := in_words(row.name))]


@dataclass(frozen=True)
class Setting:
    """One set of data that a model was judged on."""

    title: str
    directions: list[Direction]


def from_scores(
    scores: Mapping[str, Mapping[str, Scores] | Mapping[str, float] | StsScores], start: Mapping[str, float] = {}
) -> list[Setting]:
    """Scores with intervals and chance.

    Args:
        scores: {title: {direction: Scores}, StsScores, or {metric: value}}.
        start: the metrics before training, keyed as in a training log: ``title/direction/metric``.
    """
    settings = []
    for title, found in scores.items():
        if isinstance(found, StsScores):
            settings.append(Setting(title, _correlations(title, found, start)))
            continue
        values = {f"{title}/{key}": value for key, value in found.items() if not isinstance(value, Scores)}
        settings += from_evaluation(values, start)
        judged = {name: value for name, value in found.items() if isinstance(value, Scores)}
        if judged:
            directions = [_direction(f"{title}/{name}", name, value, start) for name, value in judged.items()]
            settings.append(Setting(title, directions))
    return settings


def from_evaluation(values: Mapping[str, float], start: Mapping[str, float] = {}) -> list[Setting]:
    """The flat ``dev/image_to_text/hit@1`` of a training log: no intervals, no chance; ``start`` likewise."""
    table: dict[str, dict[str, list[Row]]] = {}
    for key, value in values.items():
        if math.isfinite(value):
            source, way, metric = split_key(key)
            table.setdefault(source, {}).setdefault(way, []).append(Row(metric, value, start=start.get(key)))
    return [
        Setting(source, [Direction(title_of(way, len(ways)), "", rows, []) for way, rows in ways.items()])
        for source, ways in table.items()
    ]


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


def _correlations(title: str, scores: StsScores, start: Mapping[str, float]) -> list[Direction]:
    """A direction a task, and the average over several."""
    ways = {task: f"{len(scores.scores[task]):,} pairs" for task in scores.tasks}
    if len(ways) > 1:
        ways = {"": f"over {len(ways)} tasks"} | ways
    found = []
    for way, size in ways.items():
        rows = []
        for metric in dict.fromkeys(key.rpartition("/")[2] for key in scores.metrics):
            key = f"{way}/{metric}" if way else metric
            low_high = scores.intervals.get(key)
            interval = None if low_high is None or not all(map(math.isfinite, low_high)) else low_high
            if math.isfinite(scores.metrics[key]):
                before = start.get(f"{title}/{key}", start.get(f"{title}/{metric}") if len(scores.tasks) == 1 else None)
                rows.append(Row(metric, scores.metrics[key], interval, start=before))
        found.append(Direction(title_of(way, len(ways)), size, rows, []))
    return found


def _direction(prefix: str, name: str, scores: Scores, start: Mapping[str, float]) -> Direction:
    chance = scores.chance()
    rows = [
        Row(key, value, scores.intervals.get(key), chance.get(key), start.get(f"{prefix}/{key}"))
        for key, value in scores.metrics.items()
    ]
    counted = {
        "queries left out because nothing is relevant to them": scores.skipped_queries,
        "judged queries without a vector, left out": scores.missing_queries,
        "relevant documents missing from the corpus, counted as never found": scores.missing_documents,
    }
    remarks = [f"{number:,} {what}" for what, number in counted.items() if number]
    return Direction(arrow(name), f"n = {scores.queries:,} queries, {scores.corpus:,} candidates", rows, remarks)
