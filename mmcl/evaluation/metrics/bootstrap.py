"""Percentile bootstrap intervals (Efron 1979), all resamples at once.

A resample is how often each item is in it: a row of counts. A statistic maps rows of counts to values, so a mean is a
matrix product, and the estimate itself is the statistic of the row in which every item stands once.

A statistic may be undefined (NaN) on some resamples, as a correlation is where all values drawn are equal: an interval
is over the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

Statistic: TypeAlias = Callable[[np.ndarray], dict[str, np.ndarray]]  # counts (B, N) -> {name: (B,)}

_CHUNK_ELEMENTS = 1 << 22  # elements of the counts held at once


def estimate(
    statistic: Statistic,
    items: int,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    groups: np.ndarray | None = None,
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """The statistic of all items, and the interval that holds the middle ``level`` of its resamples.

    Args:
        statistic: from counts (B, N) to {name: (B,)}.
        items: N.
        resamples: number of resamples; below 1 there are no intervals.
        seed: of the resamples.
        level: coverage of the intervals.
        groups: (N,) integers in [0, G): items of a group are drawn together, G groups a resample. For items that are
            not independent, such as five captions of one image, whose intervals would else be too narrow.

    Returns:
        {name: value}, {name: (low, high)}.
    """
    values = {name: float(value[0]) for name, value in statistic(np.ones((1, items))).items()}
    if resamples < 1:
        return values, {}
    drawn = distribution(statistic, items, resamples=resamples, seed=seed, groups=groups)
    return values, {name: interval(drawn[name], level) for name in values}


def distribution(
    statistic: Statistic, items: int, *, resamples: int, seed: int | Sequence[int] = 0, groups: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The statistic of each resample: {name: (resamples,)}; the arguments are those of ``estimate``."""
    rng = np.random.default_rng(seed)
    units = items if groups is None else int(groups.max()) + 1
    step = max(1, _CHUNK_ELEMENTS // max(items, units))
    chunks = []
    for start in range(0, resamples, step):
        counts = _resample(rng, min(step, resamples - start), units)
        chunks.append(statistic(counts if groups is None else counts[:, groups]))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def interval(drawn: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The bounds between which the middle ``level`` of the (B,) values lies that are not NaN; NaN if all are."""
    defined = drawn[~np.isnan(drawn)]
    if not len(defined):
        return math.nan, math.nan
    low, high = np.quantile(defined, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def means(values: Mapping[str, np.ndarray]) -> Statistic:
    """The mean of each of the (N,) ``values``."""
    table = np.stack(list(values.values()), axis=1)  # (N, M)

    def statistic(counts: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(values, (counts @ table / counts.sum(1, keepdims=True)).T, strict=True))

    return statistic


def medians(values: Mapping[str, np.ndarray]) -> Statistic:
    """The median of each of the (N,) ``values``; of an even number the mean of the middle two."""

    def median(value: np.ndarray, counts: np.ndarray) -> np.ndarray:
        order = np.argsort(value, kind="stable")
        upto = np.cumsum(counts[:, order], axis=1)
        size = upto[:, -1:]
        lower = np.argmax(upto >= np.ceil(size / 2), axis=1)
        upper = np.argmax(upto >= np.floor(size / 2) + 1, axis=1)
        return (value[order[lower]] + value[order[upper]]) / 2

    return lambda counts: {name: median(value, counts) for name, value in values.items()}


def group_means(value: np.ndarray, groups: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """From counts (B, N) to (B,): the mean over the groups of the mean of ``value`` in each group.

    A group that a resample happens to miss is left out of that resample's mean.
    """
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))

    def statistic(counts: np.ndarray) -> np.ndarray:
        counts = counts[:, order]
        size = np.add.reduceat(counts, starts, axis=1)  # (B, G)
        total = np.add.reduceat(counts * value[order], starts, axis=1)
        present = size > 0
        return np.divide(total, size, out=np.zeros_like(total), where=present).sum(1) / present.sum(1)

    return statistic


def _resample(rng: np.random.Generator, rows: int, units: int) -> np.ndarray:
    """(rows, units) float64: how often each of ``units`` draws with replacement hits each unit."""
    drawn = rng.integers(units, size=(rows, units)) + np.arange(rows)[:, None] * units
    return np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float64)
