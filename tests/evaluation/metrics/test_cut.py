from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import f1_score, precision_recall_curve, precision_score, recall_score, roc_auc_score

from mmcl.evaluation.metrics.cut import Counts, Curve, area


def drawn(seed: int, pairs: int = 600, share: float = 0.4, distance: float = 2.0, digits: int | None = None):
    """Scores of unit normal densities around ``distance`` and 0, and labels."""
    rng = np.random.default_rng(seed)
    same = rng.random(pairs) < share
    scores = rng.normal(distance * same)
    return (scores if digits is None else scores.round(digits)), same


def truth(threshold: float, share: float = 0.4, distance: float = 2.0) -> float:
    """The precision of ever more such pairs."""
    right, wrong = share * norm.sf(threshold - distance), (1 - share) * norm.sf(threshold)
    return float(right / (right + wrong))


@pytest.mark.parametrize("digits", [None, 1])
def test_every_threshold_has_scikit_learns_precision_and_recall(digits) -> None:
    scores, same = drawn(0, digits=digits)
    curve = Curve.of(scores, same)
    precision, recall, thresholds = precision_recall_curve(same, scores)
    assert len(curve.thresholds) == len(thresholds) == len(np.unique(scores))
    found = curve.counts
    np.testing.assert_allclose((found.right / found.accepted)[::-1], precision[:-1])
    np.testing.assert_allclose((found.right / found.same)[::-1], recall[:-1])
    np.testing.assert_array_equal(np.array([(scores >= t).sum() for t in curve.thresholds]), found.accepted)
    best = curve.best_f1()
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert f1_score(same, scores >= best) == pytest.approx(f1.max())


def test_thresholds_are_short_numbers_between_the_scores() -> None:
    curve = Curve.of(np.array([0.9, 0.80004, 0.80003, 0.2]), np.array([True, True, False, False]))
    assert curve.thresholds.tolist() == [0.85, 0.80004, 0.5, 0.2]


def test_of_many_pairs_a_thousand_thresholds_are_looked_at() -> None:
    scores, same = drawn(1, pairs=50_000)
    curve = Curve.of(scores, same)
    assert 500 < len(curve.thresholds) <= 1000
    assert curve.counts.accepted[0] == 1
    assert curve.counts.accepted[-1] == curve.pairs == 50_000
    for place in (0, 300, -1):
        assert Counts.at(curve.thresholds[place], scores, same).accepted == curve.counts.accepted[place]


def test_another_prevalence_is_a_weight_of_either_kind() -> None:
    scores, same = drawn(2)
    accepted, prevalence = scores >= 1.5, 0.03
    weights = np.where(same, prevalence / same.mean(), (1 - prevalence) / (1 - same.mean()))
    shares = Counts.at(1.5, scores, same).shares(prevalence)
    assert shares == pytest.approx(
        {
            "precision": precision_score(same, accepted, sample_weight=weights),
            "recall": recall_score(same, accepted, sample_weight=weights),
            "f1": f1_score(same, accepted, sample_weight=weights),
        }
    )
    own = Counts.at(1.5, scores, same)
    assert own.shares() == pytest.approx(own.shares(float(same.mean())))


@pytest.mark.parametrize("prevalence", [None, 0.6])
def test_a_threshold_chosen_surely_is_as_precise_as_asked_as_often_as_stated(prevalence) -> None:
    """The search over thresholds is part of the confidence: the lowest one that merely looks so precise is less precise
    in more than a half of the cases."""
    asked, confidence, missed, naive, chosen = 0.85, 0.9, 0, 0, 0
    for seed in range(200):
        curve = Curve.of(*drawn(seed))
        found = curve.surely(asked, confidence, prevalence)
        if found is not None:
            chosen += 1
            missed += truth(found, share=prevalence or 0.4) < asked
        looks = curve.counts.right / curve.counts.accepted >= asked
        naive += truth(curve.thresholds[looks][-1]) < asked
    assert chosen > 150
    assert missed <= 200 * (1 - confidence)
    assert naive > 100


def test_a_threshold_chosen_about_is_as_precise_as_asked_on_average() -> None:
    found = [Curve.of(*drawn(seed)).about(0.9, 0.95) for seed in range(200)]
    precisions = [truth(each) for each in found if each is not None]
    assert len(precisions) > 180
    assert np.mean(precisions) == pytest.approx(0.9, abs=0.02)


def test_no_threshold_is_chosen_surely_of_labels_that_are_random() -> None:
    found = [Curve.of(*drawn(seed, share=0.8, distance=0.0)).surely(0.9, 0.9) for seed in range(200)]
    assert sum(each is not None for each in found) <= 20


@pytest.mark.parametrize(("precision", "accepted"), [(0.9, 29), (0.95, 59), (0.99, 299)])
def test_a_precision_takes_as_many_pairs_as_could_show_it_without_an_error(precision, accepted) -> None:
    scores = np.arange(1000.0)
    same = scores >= 600
    curve = Curve.of(scores, same)
    assert curve.first_enough(precision, 0.95) == (accepted, accepted)
    assert curve.about(precision, 0.95) < 600 < curve.about(precision, 0.95) + 400 * (1 / precision - 1) + 1
    few = Curve.of(scores[-accepted + 1 :], np.arange(accepted - 1) != 0)
    assert few.first_enough(precision, 0.95) == (0, 0)
    assert few.about(precision, 0.95) is None


@pytest.mark.parametrize("prevalence", [None, 0.05])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_shares_of_new_pairs_lie_in_their_intervals_as_often_as_stated(prevalence, confidence) -> None:
    inside = dict.fromkeys(("precision", "recall", "f1"), 0)
    for seed in range(200):
        counts = Counts.at(1.2, *drawn(seed, pairs=300))
        new = Counts.at(1.2, *drawn(10_000 + seed, pairs=300)).shares(prevalence)
        for name, (low, high) in counts.intervals(confidence, prevalence).items():
            inside[name] += low <= new[name] <= high
    assert min(inside.values()) >= 200 * confidence - 2 * np.sqrt(200 * confidence * (1 - confidence))


def test_area_is_scikit_learns_and_its_interval_holds_it_as_often_as_stated() -> None:
    expected, inside = norm.cdf(1.0 / np.sqrt(2)), 0
    for seed in range(300):
        scores, same = drawn(seed, pairs=150, distance=1.0)
        value, (low, high) = area(scores, same, 0.95)
        inside += low <= expected <= high
    assert value == pytest.approx(roc_auc_score(same, scores))
    assert 0.92 <= inside / 300 <= 0.98
    tied, same = drawn(0, digits=0)
    assert area(tied, same, 0.95)[0] == pytest.approx(roc_auc_score(same, tied))
