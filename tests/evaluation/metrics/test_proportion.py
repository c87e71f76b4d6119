from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, binomtest, hypergeom

from mmcl.evaluation.metrics import proportion


@pytest.mark.parametrize(("successes", "trials"), [(0, 12), (12, 12), (1, 40), (37, 40), (180, 300)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_interval_is_scipys_exact_one(successes, trials, confidence) -> None:
    theirs = binomtest(successes, trials).proportion_ci(confidence, method="exact")
    assert proportion.interval(successes, trials, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_one_sided_bounds_are_scipys() -> None:
    successes, trials = np.array([0, 3, 29, 30]), np.array([30, 30, 30, 30])
    low = [binomtest(k, 30, alternative="greater").proportion_ci(0.95).low for k in successes]
    high = [binomtest(k, 30, alternative="less").proportion_ci(0.95).high for k in successes]
    np.testing.assert_allclose(proportion.lower(successes, trials, 0.95), low, atol=1e-12)
    np.testing.assert_allclose(proportion.upper(successes, trials, 0.95), high, atol=1e-12)
    nothing = np.array([0])
    assert (proportion.lower(nothing, nothing, 0.95)[0], proportion.upper(nothing, nothing, 0.95)[0]) == (0, 1)


@pytest.mark.parametrize(("trials", "new"), [(20, 20), (35, 70), (60, 10)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_new_trials_fall_into_their_interval_as_often_as_stated_whatever_the_proportion(trials, new, confidence):
    bounds = np.array([proportion.interval(k, trials, confidence, new=new) for k in range(trials + 1)])
    shares = np.arange(new + 1) / new
    inside = (bounds[:, :1] - 1e-12 <= shares) & (shares <= bounds[:, 1:] + 1e-12)  # (trials + 1, new + 1)
    for truth in np.linspace(0.01, 0.99, 50):
        before, after = binom.pmf(np.arange(trials + 1), trials, truth), binom.pmf(np.arange(new + 1), new, truth)
        assert before @ inside @ after >= confidence


def test_limits_of_new_trials_are_those_of_the_hypergeometric_test() -> None:
    trials, new, tail = 25, 40, 0.025
    counts = np.arange(new + 1)
    for successes in range(trials + 1):
        total = counts + successes  # of both samples: how many of them are in the first is hypergeometric
        few = hypergeom.cdf(successes, trials + new, total, trials) > tail
        many = hypergeom.sf(successes - 1, trials + new, total, trials) > tail
        possible = counts[few & many]
        low, high = proportion.interval(successes, trials, 0.95, new=new)
        assert (round(low * new), round(high * new)) == (possible[0], possible[-1])


def test_interval_of_ever_more_new_trials_becomes_that_of_the_proportion() -> None:
    of_all = proportion.interval(190, 200)
    widths = []
    for new in (100, 400, 100_000):
        low, high = proportion.interval(190, 200, new=new)
        assert low <= of_all[0] + 1 / new
        assert high >= of_all[1] - 1 / new
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    np.testing.assert_allclose((low, high), of_all, atol=1e-3)


def test_nothing_is_known_without_trials() -> None:
    assert proportion.interval(0, 0) == proportion.interval(3, 5, new=0) == (0.0, 1.0)
