"""A threshold of scores: how pairs fall on both sides of it, and where it is to be put.

Pairs that score at least the threshold are *accepted*. Precision is the share of the same among the accepted, recall
the share of the accepted among the same. A precision holds for one *prevalence*, the share of the same among all pairs.
At another, π, it is π·recall / (π·recall + (1 - π)·false), where ``false`` is the share of the accepted among the
different.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm, rankdata

from mmcl.evaluation.metrics import proportion

_CANDIDATES = 1000
_STARTS = 2 ** np.arange(5, 40, 2)
_QUARTILE = 0.75


@dataclass(frozen=True)
class Counts:
    """Pairs at a threshold, or arrays of them at several.

    Attributes:
        right: accepted pairs that are the same.
        wrong: accepted pairs that are different.
        same: all pairs that are the same.
        different: all that are different.
    """

    right: Any
    wrong: Any
    same: int
    different: int

    @classmethod
    def at(cls, threshold: float, scores: np.ndarray, same: np.ndarray) -> Counts:
        """Of the (N,) pairs."""
        accepted = scores >= threshold
        right, of = int(np.count_nonzero(accepted & same)), int(np.count_nonzero(same))
        return cls(right, int(np.count_nonzero(accepted)) - right, of, len(same) - of)

    @property
    def accepted(self) -> Any:
        """Pairs that score at least the threshold."""
        return self.right + self.wrong

    def shares(self, prevalence: float | None = None) -> dict[str, float]:
        """Precision, recall and F1 at the pairs' own prevalence or another; NaN for the precision of none."""
        recall, false = self.right / self.same, self.wrong / self.different
        own = self.same / (self.same + self.different)
        return _rates(recall, false, own if prevalence is None else prevalence)

    def precision_above(self, confidence: float, prevalence: float | None = None) -> np.ndarray:
        """What the precision exceeds with this confidence: a one-sided bound, or an array of them."""
        if prevalence is None:
            return proportion.lower(self.right, self.accepted, confidence)
        half = (1 + confidence) / 2  # the two bounds fail together in 1 - confidence at most
        recall = proportion.lower(self.right, np.full_like(self.right, self.same), half)
        false = proportion.upper(self.wrong, np.full_like(self.wrong, self.different), half)
        return prevalence * recall / (prevalence * recall + (1 - prevalence) * false)

    def intervals(
        self, confidence: float, prevalence: float | None = None, *, times: float = 1.0
    ) -> dict[str, tuple[float, float]]:
        """Where precision, recall and F1 of ``times`` as many new pairs lie, each with ``confidence``.

        Each is a proportion, and its interval exact: F1 is 2J/(1 + J) of J, the accepted and same among those that are
        either. At another prevalence, the bounds of recall and of the share of wrong ones are combined, each so that
        both hold with ``confidence``.
        """

        def of(successes: int, trials: int, level: float = confidence) -> tuple[float, float]:
            return proportion.interval(successes, trials, level, new=round(times * trials))

        recall = of(self.right, self.same)
        if prevalence is None:
            low, high = of(self.right, self.wrong + self.same)
            f1 = (2 * low / (1 + low), 2 * high / (1 + high))
            return {"precision": of(self.right, self.accepted), "recall": recall, "f1": f1}
        half = (1 + confidence) / 2
        found, false = of(self.right, self.same, half), of(self.wrong, self.different, half)
        worst, best = _rates(found[0], false[1], prevalence), _rates(found[1], false[0], prevalence)
        both = {name: (float(np.nan_to_num(worst[name])), best[name]) for name in ("precision", "f1")}
        return {"precision": both["precision"], "recall": recall, "f1": both["f1"]}


def _rates(recall: float, false: float, prevalence: float) -> dict[str, float]:
    found, wrong = prevalence * recall, (1 - prevalence) * false
    precision = found / (found + wrong) if found + wrong else float("nan")
    return {"precision": precision, "recall": recall, "f1": 2 * found / (found + wrong + prevalence)}


@dataclass(frozen=True)
class Curve:
    """Counts at up to 1,000 thresholds, from the strictest to the laxest.

    Attributes:
        thresholds: (M,) descending; between the scores on its two sides, so that rounding moves no pair across.
        counts: (M,) at each.
    """

    thresholds: np.ndarray
    counts: Counts

    @property
    def pairs(self) -> int:
        """N."""
        return self.counts.same + self.counts.different

    @classmethod
    def of(cls, scores: np.ndarray, same: np.ndarray) -> Curve:
        """Of (N,) finite scores and booleans. Of many pairs, the numbers of accepted ones grow by a constant factor."""
        order = np.argsort(-scores, kind="stable")
        ordered, right = scores[order], np.cumsum(same[order])
        ends = np.flatnonzero(np.append(np.diff(ordered) < 0, True))  # the last of equal scores
        if len(ends) > _CANDIDATES:
            wanted = np.geomspace(1, len(ordered), _CANDIDATES).round().astype(int) - 1
            ends = ends[np.unique(np.searchsorted(ends, wanted))]
        below = ordered[np.minimum(ends + 1, len(ordered) - 1)]
        total = int(right[-1])
        counts = Counts(right[ends], ends + 1 - right[ends], total, len(ordered) - total)
        return cls(_between(below, ordered[ends]), counts)

    def best_f1(self, prevalence: float | None = None) -> float:
        """The threshold of the highest F1, the strictest of several."""
        of = self.counts
        share = of.same / (of.same + of.different) if prevalence is None else prevalence
        found, wrong = share * of.right / of.same, (1 - share) * of.wrong / of.different
        return float(self.thresholds[np.argmax(2 * found / (found + wrong + share))])

    def about(self, precision: float, confidence: float, prevalence: float | None = None) -> float | None:
        """The lowest threshold that looks so precise; None if none does of those that accept enough pairs to show it.

        It is the lowest of many that do, and so is partly lucky; that is offset by comparing the lower quartile of
        where its precision may lie.
        """
        looks = self.counts.precision_above(_QUARTILE, prevalence) >= precision
        return self._lowest(np.flatnonzero(looks & self._enough(precision, confidence, prevalence)))

    def surely(self, precision: float, confidence: float, prevalence: float | None = None) -> float | None:
        """The lowest threshold whose precision is at least so high with this confidence; None if there is none.

        Among many thresholds some look precise by luck. So they are tested in an order, each only if the one before it
        has passed, which keeps the probability that a threshold is returned that is less precise at
        1 - ``confidence``: fixed-sequence testing with several starts, as in Learn then Test (Angelopoulos et al. 2021,
        arXiv:2110.01052). The starts are where 32, 128, 512, … pairs are accepted, and share that probability; from
        each, the test goes on to laxer thresholds.
        """
        accepted = self.counts.accepted
        starts = np.unique(np.searchsorted(accepted, _STARTS[accepted[-1] >= _STARTS]))
        level = 1 - (1 - confidence) / max(1, len(starts))
        failed = np.flatnonzero(self.counts.precision_above(level, prevalence) < precision)
        stops = np.append(failed, len(accepted))
        last = stops[np.searchsorted(stops, starts)] - 1  # before the first to fail, from each start on
        return self._lowest(last[last >= starts])

    def first_enough(self, precision: float, confidence: float, prevalence: float | None = None) -> tuple[int, int]:
        """How many pairs must be accepted before such a precision can be shown, and how many of these are the same;
        (0, 0) if all of them together are too few."""
        enough = self._enough(precision, confidence, prevalence)
        place = int(np.argmax(enough))
        found = self.counts
        return (int(found.accepted[place]), int(found.right[place])) if enough[place] else (0, 0)

    def _enough(self, precision: float, confidence: float, prevalence: float | None) -> np.ndarray:
        """(M,) bool: where the precision could be shown if all accepted pairs were the same."""
        accepted = np.minimum(self.counts.accepted, self.counts.same)
        flawless = Counts(accepted, np.zeros_like(accepted), self.counts.same, self.counts.different)
        return flawless.precision_above(confidence, prevalence) >= precision

    def _lowest(self, places: np.ndarray) -> float | None:
        return float(self.thresholds[places.max()]) if len(places) else None


def _between(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Numbers above ``low`` and not above ``high``, the shortest of up to six decimals that there is."""
    found = np.where(low < high, (low + high) / 2, high)
    for digits in (6, 5, 4):
        rounded = np.round((low + high) / 2, digits)
        found = np.where((rounded > low) & (rounded <= high), rounded, found)
    return found


def area(scores: np.ndarray, same: np.ndarray, confidence: float) -> tuple[float, tuple[float, float]]:
    """The area under the ROC curve, the probability that a pair that is the same scores higher than one that is not,
    and its interval by DeLong et al. (1988); ties count half."""
    ranks, same = rankdata(scores), same.astype(bool)
    above = (ranks[same] - rankdata(scores[same])) / np.count_nonzero(~same)
    below = (ranks[~same] - rankdata(scores[~same])) / np.count_nonzero(same)
    value = float(above.mean())
    spread = np.sqrt(above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below))
    half = float(norm.ppf((1 + confidence) / 2) * spread)
    return value, (max(value - half, 0.0), min(value + half, 1.0))
