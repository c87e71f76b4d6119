"""Correlations of resamples, all at once: functions of how often each pair of values is drawn (see ``bootstrap``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

OfCounts: TypeAlias = Callable[[np.ndarray], np.ndarray]  # counts (B, N) -> (B,)

_BLOCK = 32  # resamples ranked at once: (N, 32) stays in a core's cache
_NO_SPREAD = 1e-14  # of values scaled to [-1, 1]: their variance, but for rounding


def spearman(first: np.ndarray, second: np.ndarray) -> OfCounts:
    """Spearman's rank correlation of the (N,) values; equal ones share the mean of their ranks.

    NaN where either side of a resample holds a single value. The values are sorted once: the ranks in a resample follow
    from the running sum of the counts in that order, so B resamples cost B·N and no sorting. They are taken a few at a
    time and side by side, (N, b): to bring a row of b into another order is to copy it, which is three times as fast as
    to gather numbers one by one.
    """
    rank_first, rank_second = _ranks(first), _ranks(second)

    def some(counts: np.ndarray) -> np.ndarray:  # (N, b) -> (b,)
        middle = (counts.sum(0) + 1) / 2
        a, b = rank_first(counts) - middle, rank_second(counts) - middle
        weighted = counts * a
        spread = np.einsum("nb,nb->b", weighted, a) * np.einsum("nb,nb->b", counts * b, b)
        with np.errstate(invalid="ignore"):  # 0 / 0 is what undefined means
            return np.asarray(np.einsum("nb,nb->b", weighted, b) / np.sqrt(spread))

    def statistic(counts: np.ndarray) -> np.ndarray:
        blocks = (counts[start : start + _BLOCK] for start in range(0, len(counts), _BLOCK))
        return np.concatenate([some(np.ascontiguousarray(block.T)) for block in blocks])

    return statistic


def pearson(first: np.ndarray, second: np.ndarray) -> OfCounts:
    """Pearson's correlation of the (N,) values; NaN where either side of a resample holds a single value."""
    a, b = _scaled(first), _scaled(second)
    moments = np.stack([a, b, a * a, b * b, a * b], axis=1)  # (N, 5)

    def statistic(counts: np.ndarray) -> np.ndarray:
        mean_a, mean_b, square_a, square_b, product = (counts @ moments / counts.sum(1, keepdims=True)).T
        spread_a, spread_b = square_a - mean_a**2, square_b - mean_b**2
        defined = (spread_a > _NO_SPREAD) & (spread_b > _NO_SPREAD)
        spread = np.where(defined, spread_a * spread_b, np.nan)
        return np.asarray((product - mean_a * mean_b) / np.sqrt(spread))

    return statistic


def _ranks(values: np.ndarray) -> OfCounts:
    """From counts (N, b) to the ranks (N, b) that the values have in each resample."""
    distinct, code = np.unique(values, return_inverse=True)
    order = np.argsort(code, kind="stable")
    starts = np.searchsorted(code[order], np.arange(len(distinct)))

    def ranks(counts: np.ndarray) -> np.ndarray:
        size = np.add.reduceat(counts[order], starts, axis=0)  # (distinct, b)
        return np.asarray((np.cumsum(size, axis=0) - (size - 1) / 2)[code])

    return ranks


def _scaled(values: np.ndarray) -> np.ndarray:
    """Shifted and stretched, which a correlation does not see, to about [-1, 1] around 0."""
    centred = values - values.mean()
    return np.asarray(centred / np.abs(centred).max()) if np.ptp(values) else np.zeros(len(values))
