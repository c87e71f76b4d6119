"""From which score on do two things match, at a stated precision, or at the best balance of precision and recall.

The pairs are divided at random into halves. One half chooses the threshold, the lowest one that is as precise as asked.
The other half, which chose nothing, says how precise it is: so its interval is one of a proportion, and exact, whatever
the scores are and however the threshold was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mmcl.evaluation.metrics.calibration import calibrate
from mmcl.evaluation.metrics.cut import Counts, Curve, area
from mmcl.formats.threshold import Calibration
from mmcl.runtime.errors import MmclError

FEWEST = 40
"""Pairs of either kind that a threshold takes, half of which choose it."""

PRECISIONS = (0.9, 0.95, 0.99)
"""What is asked for by default."""


@dataclass(frozen=True)
class Cut:
    """A threshold, or why there is none.

    Attributes:
        asked: the precision that was asked for; None for the best F1.
        threshold: pairs that score at least this much match; None where the data do not support a number.
        reason: why not, in words; "" where there is a number.
        shares: ``precision``, ``recall`` and ``f1``, of the half of the pairs that did not choose it.
        intervals: of each, where that of as many new pairs as were given lies, with the stated confidence; the
            proportions themselves, of pairs without end, lie in it all the more.
        accepted: pairs of that half from the threshold on.
    """

    asked: float | None
    threshold: float | None = None
    reason: str = ""
    shares: dict[str, float] | None = None
    intervals: dict[str, tuple[float, float]] | None = None
    accepted: int = 0

    @property
    def precision(self) -> float:
        """Measured on the half that did not choose; NaN without a threshold."""
        return (self.shares or {}).get("precision", math.nan)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: ``asked``, ``threshold``, ``reason``, ``accepted``, each share, and ``intervals``."""
        values = asdict(self)
        shares = values.pop("shares") or {"precision": None, "recall": None, "f1": None}
        return {**values, **shares, "intervals": self.intervals or {}}


@dataclass(frozen=True)
class Thresholds:
    """What :func:`threshold` measured.

    Attributes:
        cuts: one of each asked precision, and that of the best F1.
        calibration: from scores to probabilities that a pair is the same, with its calibration error; None where there
            is no ``area`` above chance.
        area: under the ROC curve, and its interval; NaN where there are too few pairs.
        pairs, same: how many were given, and how many of them are the same.
        prevalence: the share of the same that all numbers hold for.
        confidence: of every interval and choice.
    """

    cuts: list[Cut]
    calibration: Calibration | None
    area: float
    area_interval: tuple[float, float]
    pairs: int
    same: int
    prevalence: float
    confidence: float

    @property
    def threshold(self) -> float | None:
        """Of the first cut."""
        return self.cuts[0].threshold

    def at(self, precision: float | None = None) -> Cut:
        """The cut that was asked for; None for the best F1.

        Raises:
            MmclError: it was not.
        """
        found = next((cut for cut in self.cuts if cut.asked == precision), None)
        if found is None:
            asked = ", ".join("best F1" if cut.asked is None else f"{cut.asked:g}" for cut in self.cuts)
            raise MmclError(f"threshold: precision {precision} was not asked for; there are {asked}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; null where undefined."""
        known = None if math.isnan(self.area) else self.area
        return {
            "cuts": [cut.to_dict() for cut in self.cuts],
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "area": known,
            "area_interval": None if known is None else list(self.area_interval),
            **{name: getattr(self, name) for name in ("pairs", "same", "prevalence", "confidence")},
        }


def threshold(
    scores: Any,
    same: Any,
    precision: float | Sequence[float] = PRECISIONS,
    *,
    confidence: float = 0.95,
    prevalence: float | None = None,
    at_least: bool = False,
    seed: int = 0,
) -> Thresholds:
    """The score from which two things match, at each asked precision and at the best F1; and calibrated probabilities.

    A precision depends on the *prevalence*, the share of the same among the pairs that are compared. That of labelled
    pairs is mostly far above that of a search or a corpus, where nearly all pairs are different; a threshold that is
    right in 95 of 100 of these then errs far more often. Where the share to come is known, give it: recall and
    the share of wrong ones are measured, the precision follows from them, and its interval is wider.

    No number is given where the data support none: too few pairs of a kind; scores that tell nothing (the area under
    the ROC curve may be 0.5); a precision that no threshold has which accepts enough pairs to show it with
    ``confidence`` (59 for 0.95, 299 for 0.99, were all of them the same), or that the half which did not choose
    refutes; a best F1 where as many matches are wrong as right, or that is no better than that of taking all pairs. The
    reason stands in its place.

    Intervals take the pairs as independent draws. Many pairs with one item in common are fewer than they look.

    Args:
        scores: (N,) finite numbers, the higher the more alike, such as cosines.
        same: (N,) booleans, or 0 and 1: whether the pair is the same.
        precision: one or several, above 0 and below 1. Half of the pairs estimate where it is; its interval says how
            well.
        confidence: of each interval, above 0 and below 1.
        prevalence: the share of the same among the pairs to come; as among those given if absent.
        at_least: choose each threshold so that it has the precision or a higher one with ``confidence``: stricter, and
            there are fewer (:meth:`mmcl.evaluation.metrics.cut.Curve.surely`).
        seed: of the halves and of the folds of the calibration.

    >>> rng = np.random.default_rng(0)
    >>> same = rng.random(4000) < 0.5
    >>> found = threshold(rng.normal(2.0 * same), same, precision=0.9)
    >>> found.threshold, found.cuts[0].precision > 0.9
    (1.6525, True)

    Raises:
        MmclError: lengths that differ, scores that are not finite, other labels, pairs of one kind alone, or shares out
            of their range.
    """
    values, labels = _checked(scores, same)
    asked = [float(value) for value in np.atleast_1d(np.asarray(precision, dtype=np.float64))]
    for value in asked:
        _require_share("precision", value)
    _require_share("confidence", confidence)
    if prevalence is not None:
        _require_share("prevalence", prevalence)
    under, interval = math.nan, (math.nan, math.nan)
    if not (reason := _too_few(labels)):
        under, interval = area(values, labels, confidence)
        reason = _by_chance(under, interval)
    cuts = [Cut(each, reason=reason) for each in (*asked, None)]
    calibration = None
    if not reason:
        chooses = _half(labels, seed)
        curve, other = Curve.of(values[chooses], labels[chooses]), (values[~chooses], labels[~chooses])
        choose = curve.surely if at_least else curve.about
        chosen = [_chosen(cut, curve, choose, confidence, prevalence) for cut in cuts]
        cuts = [_stated(cut, *other, confidence, prevalence) for cut in chosen]
        calibration = calibrate(values, labels, prevalence=prevalence, seed=seed)
    return Thresholds(
        cuts=cuts,
        calibration=calibration,
        area=under,
        area_interval=interval,
        pairs=len(labels),
        same=int(labels.sum()),
        prevalence=float(labels.mean()) if prevalence is None else prevalence,
        confidence=confidence,
    )


def _checked(scores: Any, same: Any) -> tuple[np.ndarray, np.ndarray]:
    """(N,) float64 and (N,) bool."""
    values, labels = np.asarray(scores, dtype=np.float64), np.asarray(same)
    if values.ndim != 1 or values.shape != labels.shape:
        raise MmclError(f"threshold: scores {values.shape} and same {labels.shape}; give a score and a label a pair")
    if not np.isfinite(values).all():
        place = int(np.argmin(np.isfinite(values)))
        raise MmclError(f"threshold: the score of pair {place} is {values[place]}; leave out pairs without a score")
    truth = labels.astype(bool)
    if not np.array_equal(truth, labels):
        odd = labels[truth != labels][0]
        raise MmclError(f"threshold: same holds {odd!r}; it takes booleans, such as score >= 4, or 0 and 1")
    if truth.all() or not truth.any():
        kind = "the same" if len(truth) and truth[0] else "different"
        raise MmclError(f"threshold: all {len(truth):,} pairs are {kind}; give some of both kinds")
    return values, truth


def _require_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise MmclError(f"threshold: {name} is {value:g}; it lies between 0 and 1, such as 0.95")


def _too_few(same: np.ndarray) -> str:
    count = int(same.sum())
    if min(count, len(same) - count) >= FEWEST:
        return ""
    return f"{count:,} pairs are the same and {len(same) - count:,} different; it takes {FEWEST} of both to tell"


def _by_chance(area: float, interval: tuple[float, float]) -> str:
    if interval[0] > 0.5:
        return ""
    return (
        "the scores do not tell the same from the different: the area under the ROC curve is "
        f"{area:.3f} ({interval[0]:.3f} – {interval[1]:.3f}), and chance has 0.5"
    )


def _half(same: np.ndarray, seed: int) -> np.ndarray:
    """(N,) bool: half of the same and half of the different, drawn at random."""
    rng, chosen = np.random.default_rng(seed), np.zeros(len(same), dtype=bool)
    for kind in (same, ~same):
        rows = np.flatnonzero(kind)
        chosen[rng.permutation(rows)[: len(rows) // 2]] = True
    return chosen


def _chosen(
    cut: Cut, curve: Curve, choose: Callable[..., float | None], confidence: float, prevalence: float | None
) -> Cut:
    """The threshold by the half that chooses, or why there is none."""
    if cut.asked is None:
        return replace(cut, threshold=curve.best_f1(prevalence))
    found = choose(cut.asked, confidence, prevalence)
    if found is not None:
        return replace(cut, threshold=found)
    accepted, right = curve.first_enough(cut.asked, confidence, prevalence)
    takes = f"that takes {accepted:,} pairs without an error; of so many on one half, {right:,} are the same"
    if not accepted:
        of = curve.counts
        rare = "" if prevalence is None else f" where one in {1 / prevalence:,.0f} is the same"
        takes = (
            f"one half has {of.same:,} pairs that are the same and {of.different:,} different, which is too few{rare}"
        )
    reason = f"precision {cut.asked:g} cannot be shown with {100 * confidence:g}% confidence: {takes}"
    return replace(cut, reason=reason)


def _stated(cut: Cut, scores: np.ndarray, same: np.ndarray, confidence: float, prevalence: float | None) -> Cut:
    """What the pairs of the other half say of the threshold; twice as many were given."""
    if cut.threshold is None:
        return cut
    counts = Counts.at(cut.threshold, scores, same)
    shares, intervals = counts.shares(prevalence), counts.intervals(confidence, prevalence, times=2)
    share = counts.same / len(same) if prevalence is None else prevalence
    (low, high), all_taken = intervals["precision"], 2 * share / (1 + share)
    reason = ""
    if cut.asked is None and intervals["f1"][0] <= all_taken:
        reason = f"no threshold has a better F1 than taking all pairs for the same, {all_taken:.3f}"
    elif cut.asked is None and low <= 0.5:
        reason = (
            f"of the pairs from {cut.threshold:.6g} on, where F1 is best, it is not shown that more than a half are "
            f"the same: precision {shares['precision']:.3f} ({low:.3f} – {high:.3f})"
        )
    elif not counts.accepted:
        reason = f"none of the pairs that check it scores {cut.threshold:.6g}, which the others chose"
    elif cut.asked is not None and high < cut.asked:
        reason = (
            f"from {cut.threshold:.6g} on, which one half of the pairs chose, the other half has a precision of "
            f"{shares['precision']:.3f} ({low:.3f} – {high:.3f})"
        )
    if reason:
        return replace(cut, threshold=None, reason=reason)
    return replace(cut, shares=shares, intervals=intervals, accepted=counts.accepted)
