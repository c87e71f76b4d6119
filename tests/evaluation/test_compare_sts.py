from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import rankdata

from mmcl.evaluation import StsScores, compare_sts, sts
from mmcl.evaluation.compare import holm
from mmcl.runtime.errors import MmclError


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def judged(*similarities: np.ndarray, score: np.ndarray) -> StsScores:
    """Scores of a model whose similarities are given, a task each."""
    alike = {f"task {number}": values for number, values in enumerate(similarities)}
    metrics = {f"{task}/spearman": spearman(values, score) for task, values in alike.items()}
    metrics["spearman"] = float(np.mean(list(metrics.values())))
    return StsScores(metrics, {}, alike, dict.fromkeys(alike, score), "cosine")


def test_p_comes_near_the_exact_enumeration_of_all_exchanges() -> None:
    rng = np.random.default_rng(0)
    score = rng.integers(0, 6, 11).astype(float)
    a, b = score + rng.normal(0, 4, 11), np.exp(score + rng.normal(0, 0.7, 11))  # on quite different scales
    found = compare_sts(judged(a, score=score), judged(b, score=score), resamples=20_000).differences["task 0"]
    first, second, truth = (rankdata(values) for values in (a, b, score))
    differences = []
    for swapped in itertools.product([False, True], repeat=11):
        one, other = np.where(swapped, second, first), np.where(swapped, first, second)
        differences.append(np.corrcoef(other, truth)[0, 1] - np.corrcoef(one, truth)[0, 1])
    expected = np.mean(np.abs(differences) >= abs(differences[0]) - 1e-12)
    assert found.difference == pytest.approx(differences[0])
    assert 0.01 < expected < 0.5
    assert found.p == pytest.approx(expected, abs=0.01)


def test_p_values_are_uniform_where_two_models_are_equally_good() -> None:
    rng, p = np.random.default_rng(1), []
    for _ in range(150):
        score = rng.standard_normal(60)
        a, b = (judged(score + rng.standard_normal(60), score=score) for _ in range(2))
        p.append(compare_sts(a, b, resamples=200).differences["task 0"].p)
    assert np.quantile(p, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.12)


def test_intervals_and_the_average_by_a_plain_paired_bootstrap() -> None:
    rng = np.random.default_rng(2)
    score = rng.integers(0, 10, 80) / 2
    noisy = [[score + rng.normal(0, level, 80) for _ in range(2)] for level in (3, 2.5)]
    found = compare_sts(judged(*noisy[0], score=score), judged(*noisy[1], score=score), resamples=4000)
    assert list(found.differences) == ["task 0", "task 1", "average"]
    drawn = []
    for task in range(2):
        rows = rng.integers(80, size=(3000, 80))
        a, b = noisy[0][task], noisy[1][task]
        drawn.append([spearman(b[r], score[r]) - spearman(a[r], score[r]) for r in rows])
    for name, values in (("task 0", drawn[0]), ("average", np.mean(drawn, axis=0))):
        row = found.differences[name]
        assert (row.low, row.high) == pytest.approx(tuple(np.quantile(values, (0.025, 0.975))), abs=0.03)
    rows = list(found.differences.values())
    assert rows[2].difference == pytest.approx((rows[0].difference + rows[1].difference) / 2)
    assert [row.p_holm for row in rows] == holm([row.p for row in rows])
    assert [row.queries for row in rows] == [80, 80, 160]


def test_a_better_model_is_ahead_and_a_model_is_not_ahead_of_itself(sts_table, hashed) -> None:
    table = pa.table(sts_table)
    coarse, fine = (sts(hashed(dim), table, bootstrap=0) for dim in (4, 512))
    assert compare_sts(coarse, fine).differences["average"].ahead == "b"
    assert compare_sts(fine, coarse).differences["average"].ahead == "a"
    same = compare_sts(fine, fine)
    assert {(row.difference, row.p, row.ahead) for row in same.differences.values()} == {(0.0, 1.0, None)}


def test_mistakes_are_one_line() -> None:
    score = np.arange(5.0)
    a = judged(score, score=score)
    with pytest.raises(MmclError, match="judge both on the same table"):
        compare_sts(a, replace(a, data="other"))
    with pytest.raises(MmclError, match="resamples is 0"):
        compare_sts(a, a, resamples=0)
    undefined = replace(a, metrics={"task 0/spearman": float("nan")})
    with pytest.raises(MmclError, match="B's correlation on task 0 is undefined"):
        compare_sts(a, undefined)
