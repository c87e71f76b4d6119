from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from mmcl.evaluation.metrics import bootstrap


def test_the_interval_of_a_mean_equals_scipys() -> None:
    value = np.random.default_rng(0).exponential(size=200)
    _, ours = bootstrap.estimate(bootstrap.means({"mean": value}), 200, resamples=20_000)
    theirs = scipy.stats.bootstrap((value,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    np.testing.assert_allclose(ours["mean"], theirs.confidence_interval, rtol=0.01)


def test_the_interval_of_a_median_equals_scipys() -> None:
    value = np.random.default_rng(0).integers(1, 100, 201).astype(float)
    _, ours = bootstrap.estimate(bootstrap.medians({"median": value}), 201, resamples=5000)
    theirs = scipy.stats.bootstrap((value,), np.median, n_resamples=5000, method="percentile", rng=1)
    np.testing.assert_allclose(ours["median"], theirs.confidence_interval, atol=2)


@pytest.mark.parametrize("items", [1, 2, 7, 8])
def test_statistics_of_counts_equal_those_of_the_repeated_items(items: int) -> None:
    rng = np.random.default_rng(items)
    value, groups = rng.integers(0, 5, items).astype(float), rng.integers(0, 3, items)
    counts = rng.multinomial(items, np.full(items, 1 / items), size=50).astype(float)
    mean = bootstrap.means({"v": value})(counts)["v"]
    median = bootstrap.medians({"v": value})(counts)["v"]
    per_group = bootstrap.group_means(value, groups)(counts)
    for row, count in enumerate(counts.astype(int)):
        drawn, group = np.repeat(value, count), np.repeat(groups, count)
        assert mean[row] == pytest.approx(drawn.mean())
        assert median[row] == np.median(drawn)
        assert per_group[row] == pytest.approx(np.mean([drawn[group == g].mean() for g in np.unique(group)]))


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        value = (rng.random(100) < 0.4).astype(float)
        _, intervals = bootstrap.estimate(bootstrap.means({"hit": value}), 100, resamples=300, seed=trial)
        covered += intervals["hit"][0] <= 0.4 <= intervals["hit"][1]
    assert 0.89 <= covered / 200 <= 0.99


def test_items_of_a_group_are_drawn_together() -> None:
    """Each value five times over tells no more than once: the interval is that of the single values."""
    value = np.random.default_rng(2).random(60)
    _, single = bootstrap.estimate(bootstrap.means({"v": value}), 60, resamples=4000)
    fivefold = bootstrap.means({"v": np.repeat(value, 5)})
    _, grouped = bootstrap.estimate(fivefold, 300, resamples=4000, groups=np.repeat(np.arange(60), 5))
    _, ignored = bootstrap.estimate(fivefold, 300, resamples=4000)
    np.testing.assert_allclose(grouped["v"], single["v"], atol=0.005)
    assert ignored["v"][1] - ignored["v"][0] < 0.6 * (single["v"][1] - single["v"][0])


def test_the_same_seed_gives_the_same_intervals_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    statistic = bootstrap.means({"v": np.random.default_rng(3).random(50)})
    values, first = bootstrap.estimate(statistic, 50, seed=4)
    monkeypatch.setattr(bootstrap, "_CHUNK_ELEMENTS", 1000)
    assert bootstrap.estimate(statistic, 50, seed=4) == (values, first)
    assert bootstrap.estimate(statistic, 50, seed=5) != (values, first)
    assert bootstrap.estimate(statistic, 50, resamples=0) == (values, {})
