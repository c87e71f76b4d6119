"""What a report gets of an evaluator: metrics by direction, with what is known of their uncertainty and of chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mmcl.evaluation.metrics.display import Display
from mmcl.evaluation.shown import Mistake, Search


class Measured(Protocol):
    """Metrics of one kind of query, a *direction*; of :class:`mmcl.evaluation.Scores`, or made as :class:`Measures`."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """By name; those that are not finite are not shown."""

    @property
    def intervals(self) -> Mapping[str, tuple[float, float]]:
        """95% intervals of some of them."""

    @property
    def size(self) -> str:
        """How much was judged, in words; "" where that is not known."""

    @property
    def remarks(self) -> Sequence[str]:
        """What was left out, or counted as not found."""

    @property
    def display(self) -> Display:
        """How the metrics are shown."""

    def chance(self) -> Mapping[str, float]:
        """What chance is expected to score, of some of the metrics."""


class ByDirection(Protocol):
    """Scores that know their directions, such as :class:`mmcl.evaluation.StsScores`."""

    def directions(self) -> Mapping[str, Measured]:
        """By name; the one called "" is the average over the others."""


@dataclass(frozen=True)
class Measures:
    """Metrics of one direction; see :class:`Measured`."""

    metrics: Mapping[str, float]
    display: Display = field(default_factory=Display)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    by_chance: Mapping[str, float] = field(default_factory=dict)
    size: str = ""
    remarks: Sequence[str] = ()

    def chance(self) -> Mapping[str, float]:
        """``by_chance``."""
        return self.by_chance


@dataclass
class SourceResults:
    """What a finished model does on one source of data, for a report.

    Attributes:
        scores: by direction.
        searches: queries with their results.
        mistakes: wrong answers worth looking at, the worst first.
    """

    scores: Mapping[str, Measured] | ByDirection
    searches: list[Search] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)


def by_direction(metrics: Mapping[str, float], display: Display) -> dict[str, Measures]:
    """The metrics of an evaluator, ``image_to_text/hit@1`` and so on, by direction; "" is that of a key without one."""
    table: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        way, _, name = key.rpartition("/")
        table.setdefault(way, {})[name] = value
    return {way: Measures(values, display) for way, values in table.items()}
