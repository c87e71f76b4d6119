"""Does one model order pairs of sentences better than another, or only luckier (see ``compare`` for the vocabulary).

Spearman's correlation is no mean over pairs, so both halves of the comparison recompute it. *Interval*: 95% percentile
bootstrap of the difference, pairs being resampled within their task. *Test*: paired randomisation. Each model's
similarities of a task are first replaced by their ranks, because those of two models need not be on one scale; were the
models equal, the two ranks of a pair could as well be exchanged. p is how often random exchanges give a difference of
the two correlations with the ranks of the scores that is at least as far from 0: (1 + as far) / (1 + resamples). The
difference of the averages is tested on the same exchanges.

Exchanging needs no loop over pairs: with m and d half the sum and half the difference of the two ranks, the models'
values are m + s·d and m − s·d for signs s, and every sum in their correlations is linear in s, as s² = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from mmcl.evaluation.compare import LEVEL, Comparison, Difference, adjusted
from mmcl.evaluation.metrics import bootstrap as bootstrapping
from mmcl.evaluation.metrics.correlation import spearman
from mmcl.evaluation.tasks.sts import StsScores
from mmcl.runtime.errors import MmclError

AVERAGE = "average"

_CHUNK_ELEMENTS = 1 << 22  # signs held at once
_TOLERANCE = 1e-12  # of correlations that are equal but for the order of their terms


def compare_sts(a: StsScores, b: StsScores, *, resamples: int = 2000, seed: int = 0) -> Comparison:
    """Compare two models that were judged on the same pairs, by Spearman's correlation on each task and on average.

    Args:
        a, b: what ``sts`` measured.
        resamples: of the bootstrap and of the test.
        seed: of both.

    Returns:
        Differences by task, and, of several tasks, under ``average``; adjusted for their number (Holm).

    Raises:
        MmclError: they were not judged on the same pairs, a correlation is undefined, or fewer than one resample.
    """
    if resamples < 1:
        raise MmclError(f"compare: resamples is {resamples}; give a number from 1 up")
    if a.data != b.data:
        raise MmclError("compare: A and B were not judged on the same pairs: judge both on the same table")
    for name, side in (("A", a), ("B", b)):
        for task in side.tasks:
            if math.isnan(side.metrics[f"{task}/spearman"]):
                raise MmclError(f"compare: {name}'s correlation on {task} is undefined: all its values are equal")
    observed, drawn, exchanged = {}, {}, {}
    for number, task in enumerate(a.tasks):
        key = f"{task}/spearman"
        first, second, score = a.similarities[task], b.similarities[task], a.scores[task]
        observed[task] = (a.metrics[key], b.metrics[key])
        drawn[task] = _resampled(first, second, score, resamples, [seed, number])
        exchanged[task] = _exchanged(first, second, score, resamples, [seed, number])
    pairs = {task: len(a.scores[task]) for task in a.tasks}
    if len(a.tasks) > 1:
        observed[AVERAGE] = (a.average, b.average)
        drawn[AVERAGE] = np.mean([drawn[task] for task in a.tasks], axis=0)
        exchanged[AVERAGE] = np.mean([exchanged[task] for task in a.tasks], axis=0)
        pairs[AVERAGE] = sum(pairs.values())
    drafts = {}
    for name, (ours, theirs) in observed.items():
        low, high = bootstrapping.interval(drawn[name], LEVEL)
        as_far = np.abs(exchanged[name]) >= abs(theirs - ours) - _TOLERANCE
        p = float((1 + as_far.sum()) / (1 + resamples))
        drafts[name] = Difference(ours, theirs, theirs - ours, low, high, p, math.nan, pairs[name], pairs[name])
    return adjusted(drafts, resamples)


def _resampled(
    first: np.ndarray, second: np.ndarray, score: np.ndarray, resamples: int, seed: Sequence[int]
) -> np.ndarray:
    """(resamples,) differences of the correlations, the same pairs being drawn for both."""
    of_first, of_second = spearman(first, score), spearman(second, score)
    return bootstrapping.distribution(
        lambda counts: {"difference": of_second(counts) - of_first(counts)}, len(score), resamples=resamples, seed=seed
    )["difference"]


def _exchanged(
    first: np.ndarray, second: np.ndarray, score: np.ndarray, resamples: int, seed: Sequence[int]
) -> np.ndarray:
    """(resamples,) differences of the correlations, the two models' ranks being exchanged at random pair by pair."""
    a, b, y = (rankdata(values) - (len(values) + 1) / 2 for values in (first, second, score))
    m, d = (a + b) / 2, (a - b) / 2
    linear = np.stack([d, d * y, 2 * m * d], axis=1)  # (N, 3): sums of s·d, s·d·y and the cross term of the squares
    square, product, spread = (m * m + d * d).sum(), (m * y).sum(), (y * y).sum()
    rng = np.random.default_rng(seed)
    parts, step = [], max(1, _CHUNK_ELEMENTS // len(y))
    for start in range(0, resamples, step):
        signs = rng.integers(0, 2, (min(step, resamples - start), len(y)), dtype=np.int8) * 2.0 - 1
        shift, covariance, cross = (signs @ linear).T
        plus, minus = (  # the squares around the mean, which the exchange moves away from 0
            np.sqrt((square + sign * cross - shift**2 / len(y)) * spread) for sign in (1, -1)
        )
        parts.append((product - covariance) / minus - (product + covariance) / plus)
    return np.concatenate(parts)
