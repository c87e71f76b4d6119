"""Scores laid out for reading: a setting, its directions, and a row a metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mmcl.evaluation.retrieval import Scores

_FRACTIONS = {"hit", "recall", "precision", "ndcg", "map", "mrr", "top", "mean_per_class"}

_CORRELATIONS = {"spearman", "pearson"}


@dataclass(frozen=True)
class Row:
    """One metric of one direction, with what is known of its uncertainty and of chance."""

    name: str
    value: float
    interval: tuple[float, float] | None = None
    chance: float | None = None

    @property
    def is_fraction(self) -> bool:
        """Whether it lies on the scale from 0 to 1 by its meaning, not by accident."""
        return self.name.split("@")[0] in _FRACTIONS


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
        """The rows that get a bar: the hit rates, or every fraction where there are none; or correlations."""
        fractions = [row for row in self.rows if row.is_fraction]
        correlations = [row for row in self.rows if row.name in _CORRELATIONS]
        return [row for row in fractions if row.name.startswith("hit@")] or fractions or correlations

    def row(self, name: str) -> Row | None:
        """The row of a metric, if it was measured."""
        return next((row for row in self.rows if row.name == name), None)


@dataclass(frozen=True)
class Setting:
    """One set of data that a model was judged on."""

    title: str
    directions: list[Direction]


def from_scores(scores: Mapping[str, Mapping[str, Scores]]) -> list[Setting]:
    """{title: {direction: Scores}}, with intervals and chance."""
    return [
        Setting(title, [_direction(name, judged) for name, judged in directions.items()])
        for title, directions in scores.items()
    ]


def from_evaluation(values: Mapping[str, float]) -> list[Setting]:
    """The flat ``dev/image_to_text/hit@1`` of a training log: no intervals, no chance."""
    table: dict[str, dict[str, list[Row]]] = {}
    for key, value in values.items():
        if math.isfinite(value):
            source, way, metric = split_key(key)
            table.setdefault(source, {}).setdefault(way, []).append(Row(metric, value))
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


def _direction(name: str, scores: Scores) -> Direction:
    chance = scores.chance()
    rows = [Row(key, value, scores.intervals.get(key), chance.get(key)) for key, value in scores.metrics.items()]
    counted = {
        "queries left out because nothing is relevant to them": scores.skipped_queries,
        "judged queries without a vector, left out": scores.missing_queries,
        "relevant documents missing from the corpus, counted as never found": scores.missing_documents,
    }
    remarks = [f"{number:,} {what}" for what, number in counted.items() if number]
    return Direction(arrow(name), f"n = {scores.queries:,} queries, {scores.corpus:,} candidates", rows, remarks)
