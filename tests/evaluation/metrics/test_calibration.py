from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from mmcl.evaluation.metrics.calibration import calibrate, calibration_error, fit


def drawn(seed: int = 0, pairs: int = 4000, probability=lambda scores: expit(8 * scores - 4)):
    rng = np.random.default_rng(seed)
    scores = rng.random(pairs)
    return scores, rng.random(pairs) < probability(scores)


def test_both_kinds_are_scikit_learns() -> None:
    scores, same = drawn(pairs=500)
    new = np.linspace(-0.2, 1.2, 50)
    theirs = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, same)
    np.testing.assert_allclose(fit("isotonic", scores, same)(new), theirs.predict(new))
    line = LogisticRegression(C=1e6, tol=1e-8).fit(scores[:, None], same)
    np.testing.assert_allclose(fit("logistic", scores, same)(new), line.predict_proba(new[:, None])[:, 1], atol=1e-3)


@pytest.mark.parametrize(
    ("probability", "kind"),
    [(lambda scores: expit(8 * scores - 4), "logistic"), (lambda scores: np.where(scores < 0.5, 0.2, 0.7), "isotonic")],
)
def test_the_kind_that_fits_is_chosen_and_finds_the_probabilities(probability, kind) -> None:
    found = calibrate(*drawn(probability=probability))
    assert found.kind == kind
    grid = np.linspace(0.05, 0.95, 91)
    assert np.abs(found(grid) - probability(grid)).mean() < 0.03
    assert found.error < 0.03


def test_the_calibration_error_is_of_pairs_that_were_not_fitted_to() -> None:
    """Isotonic regression meets its own pairs exactly, whatever they are."""
    rng = np.random.default_rng(0)
    scores, same = rng.random(400), rng.random(400) < 0.5
    own = fit("isotonic", scores, same)(scores)
    assert calibration_error(own, same) < 1e-9
    assert calibrate(scores, same).error > 0.01


def test_another_prevalence_moves_the_odds_by_its_own() -> None:
    scores, same = drawn(pairs=20_000)
    plain, rare = calibrate(scores, same), calibrate(scores, same, prevalence=0.05)
    grid, own = np.linspace(0.2, 0.8, 7), same.mean()

    def odds(values):
        return values / (1 - values)

    ratio = odds(rare(grid)) / odds(plain(grid))
    np.testing.assert_allclose(ratio, odds(0.05) / odds(own), rtol=0.2)
    assert rare.error < 0.01


def test_calibration_error_is_scikit_learns_curve_of_equal_bins() -> None:
    rng = np.random.default_rng(1)
    probabilities = rng.random(1000)
    same = rng.random(1000) < probabilities**2
    truth, predicted = calibration_curve(same, probabilities, n_bins=10, strategy="quantile")
    assert calibration_error(probabilities, same) == pytest.approx(np.abs(truth - predicted).mean(), rel=0.02)


def test_equal_probabilities_are_in_one_bin_and_weights_count_as_copies() -> None:
    probabilities = np.repeat([0.1, 0.4, 0.9], [500, 300, 200])
    same = np.random.default_rng(2).random(1000) < np.repeat([0.15, 0.35, 0.9], [500, 300, 200])
    gaps = [abs(same[probabilities == each].sum() - each * (probabilities == each).sum()) for each in (0.1, 0.4, 0.9)]
    assert calibration_error(probabilities, same) == pytest.approx(sum(gaps) / 1000)
    weights = np.random.default_rng(3).integers(1, 4, 1000)
    copies = np.repeat(probabilities, weights), np.repeat(same, weights)
    assert calibration_error(probabilities, same, weights.astype(float)) == pytest.approx(calibration_error(*copies))
