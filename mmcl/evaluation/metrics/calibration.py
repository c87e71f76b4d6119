"""Probabilities from scores: isotonic or logistic regression, chosen and judged on pairs that were not fitted to."""

from __future__ import annotations

from typing import Literal

import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from mmcl.formats.threshold import Calibration

Kind = Literal["isotonic", "logistic"]

_KINDS: tuple[Kind, ...] = ("logistic", "isotonic")
_FOLDS, _BINS = 5, 10
_MOST = 20_000  # pairs of a kind


def calibrate(scores: np.ndarray, same: np.ndarray, *, prevalence: float | None = None, seed: int = 0) -> Calibration:
    """The calibration by the kind of regression that has the lower Brier score in five-fold cross-validation.

    Its calibration error is that of the predictions on the folds left out; it is then fitted to all pairs. Of more than
    20,000 pairs of a kind, so many are drawn at random, and weighted to what they stand for.

    Args:
        scores: (N,) float64.
        same: (N,) bool, with five of either.
        prevalence: the share of the same among the pairs that will come; if given, pairs are weighted to it.
        seed: of the folds.
    """
    prevalence = float(same.mean()) if prevalence is None else prevalence
    rng = np.random.default_rng(seed)
    kept = np.sort(np.concatenate([rng.permutation(np.flatnonzero(kind))[:_MOST] for kind in (same, ~same)]))
    scores, same = scores[kept], same[kept]
    weights = weights_for(same, prevalence)
    folds = list(StratifiedKFold(_FOLDS, shuffle=True, random_state=seed).split(scores[:, None], same))
    predicted: dict[Kind, np.ndarray] = {kind: np.empty(len(scores)) for kind in _KINDS}
    for kind, values in predicted.items():
        for train, test in folds:
            values[test] = fit(kind, scores[train], same[train], weights[train])(scores[test])
    best = min(_KINDS, key=lambda kind: np.average((predicted[kind] - same) ** 2, weights=weights))
    return fit(best, scores, same, weights, error=calibration_error(predicted[best], same, weights))


def fit(
    kind: Kind, scores: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None, error: float = float("nan")
) -> Calibration:
    """scikit-learn's regression of one kind, as a :class:`Calibration` of the given ``error``."""
    if kind == "isotonic":
        found = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, same, sample_weight=weights)
        knots = {"scores": found.X_thresholds_.tolist(), "probabilities": found.y_thresholds_.tolist()}
        return Calibration(kind, knots, error)
    mean, spread = float(scores.mean()), float(scores.std()) or 1.0
    line = LogisticRegression(C=1e6).fit((scores[:, None] - mean) / spread, same, sample_weight=weights)
    slope, start = float(line.coef_[0, 0]) / spread, float(line.intercept_[0])
    return Calibration(kind, {"slope": [slope], "intercept": [start - slope * mean]}, error)


def weights_for(same: np.ndarray, prevalence: float) -> np.ndarray:
    """(N,) weights of mean 1 under which ``prevalence`` of the pairs are the same."""
    own = same.mean()
    return np.where(same, prevalence / own, (1 - prevalence) / (1 - own))


def calibration_error(
    probabilities: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None, bins: int = _BINS
) -> float:
    """The expected calibration error: |share of the same - mean probability|, averaged over bins of equal weight.

    Bins are cut at quantiles of the probabilities, equal ones being in one bin, as in Nguyen and O'Connor (2015,
    arXiv:1508.05154). Even of perfect probabilities it is above 0, by the chance in each bin.
    """
    weight = np.ones(len(same)) if weights is None else weights
    order = np.argsort(probabilities, kind="stable")
    upto = np.cumsum(weight[order]) / weight.sum()
    edges = probabilities[order][np.minimum(np.searchsorted(upto, np.arange(1, bins) / bins), len(order) - 1)]
    place = np.searchsorted(edges, probabilities, side="left")
    gaps = np.bincount(place, weights=weight * (same - probabilities), minlength=bins)
    return float(np.abs(gaps).sum() / weight.sum())
