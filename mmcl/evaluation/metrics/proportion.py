"""Exact intervals of a proportion, and of the one that new trials will give."""

from __future__ import annotations

import numpy as np
from scipy.stats import beta, betabinom


def lower(successes: np.ndarray, trials: np.ndarray, confidence: float) -> np.ndarray:
    """(M,) one-sided lower bounds of Clopper and Pearson (1934): the proportion is below one with probability
    1 - ``confidence`` at most. 0 without trials."""
    with np.errstate(invalid="ignore"):
        bound = beta.ppf(1 - confidence, successes, trials - successes + 1)
    return np.where(successes > 0, bound, 0.0)


def upper(successes: np.ndarray, trials: np.ndarray, confidence: float) -> np.ndarray:
    """(M,) one-sided upper bounds; 1 without trials. See :func:`lower`."""
    return 1 - lower(trials - successes, trials, confidence)


def interval(successes: int, trials: int, confidence: float = 0.95, new: int | None = None) -> tuple[float, float]:
    """Where the proportion lies with a probability of ``confidence`` at least, whatever it is.

    Args:
        successes: k.
        trials: n independent ones.
        confidence: from 0 to 1, half of the rest on either side.
        new: None for the proportion itself (Clopper and Pearson 1934, Biometrika 26); else for the one that will be
            found among so many new trials, whose chance is part of it (Thatcher 1964, JRSS B 26): wider, and equal to
            the former as ``new`` grows.

    Returns:
        (low, high); (0, 1) without trials, old or new.
    """
    if trials == 0 or new == 0:
        return 0.0, 1.0
    tail, failures = (1 - confidence) / 2, trials - successes
    if new is None:
        of = np.array([successes]), np.array([trials])
        return float(lower(*of, 1 - tail)[0]), float(upper(*of, 1 - tail)[0])
    # Of a beta posterior under either of two priors, whose limits are the exact ones of the hypergeometric test.
    low = _quantile(tail, new, successes, failures + 1) if successes else 0
    high = _quantile(1 - tail, new, successes + 1, failures) if failures else new
    return low / new, high / new


def _quantile(share: float, trials: int, a: float, b: float) -> int:
    """The least number whose cumulative probability reaches ``share``: scipy's own quantile sums anew at every step."""
    cumulated = np.cumsum(betabinom.pmf(np.arange(trials + 1), trials, a, b))
    return min(int(np.searchsorted(cumulated, share)), trials)
