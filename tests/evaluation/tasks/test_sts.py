from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from scipy.spatial import distance

import mmcl
from mmcl.evaluation import open_sts, sts
from mmcl.evaluation.tasks.sts import FEWEST, sts_diagnostics
from mmcl.runtime.errors import MmclError

DATA = Path(__file__).parents[4] / "shared" / "data" / "sts.parquet"


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_every_task_equals_scipy_over_the_dense_definition(sts_table, hashed, similarity) -> None:
    class Raw(hashed):
        def encode(self, texts, normalize=True):
            assert normalize == (similarity == "cosine")
            return super().encode(texts)

    scores = sts(Raw(), pa.table(sts_table), similarity=similarity, bootstrap=0)
    first, second = (hashed().encode(sts_table[name]).astype(float) for name in ("sentence1", "sentence2"))
    measure = {
        "cosine": lambda a, b: 1 - distance.cosine(a, b),
        "dot": np.dot,
        "euclidean": lambda a, b: -distance.euclidean(a, b),
        "manhattan": lambda a, b: -distance.cityblock(a, b),
    }[similarity]
    alike = np.array([measure(a, b) for a, b in zip(first, second, strict=True)]).round(9)
    own, truth = np.array(sts_table["task"]), np.array(sts_table["score"])
    expected = {}
    for task in scores.tasks:
        rows = own == task
        expected[f"{task}/spearman"] = scipy.stats.spearmanr(alike[rows], truth[rows]).statistic
        expected[f"{task}/pearson"] = scipy.stats.pearsonr(alike[rows], truth[rows]).statistic
    for name in ("spearman", "pearson"):
        expected[name] = np.mean([expected[f"{task}/{name}"] for task in scores.tasks])
    assert scores.metrics == pytest.approx(expected, abs=1e-8)
    assert scores.tasks == ["STS12", "STSB", "own"]
    assert scores.average == scores.metrics["spearman"] > 0.5


def test_intervals_equal_scipys_bootstrap_of_pairs(sts_table, hashed) -> None:
    scores = sts(hashed(), pa.table(sts_table), bootstrap=4000)
    task = (scores.similarities["STS12"], scores.scores["STS12"])
    theirs = scipy.stats.bootstrap(
        task, lambda a, b: scipy.stats.spearmanr(a, b).statistic, paired=True, vectorized=False, n_resamples=600,
        method="percentile", rng=1,
    )  # fmt: skip
    np.testing.assert_allclose(scores.intervals["STS12/spearman"], theirs.confidence_interval, atol=0.02)
    width = {name: high - low for name, (low, high) in scores.intervals.items()}
    by_task = [width[f"{name}/spearman"] for name in scores.tasks]
    assert width["spearman"] == pytest.approx(np.sqrt(np.square(by_task).sum()) / 3, rel=0.1)  # independent tasks


def test_every_distinct_sentence_is_encoded_once(sts_table, hashed) -> None:
    encoder = hashed()
    sts(encoder, pa.table(sts_table), bootstrap=0)
    assert sorted(encoder.encoded) == sorted({*sts_table["sentence1"], *sts_table["sentence2"]})


def test_equal_sentences_tie_exactly() -> None:
    """Their cosines are 1 but for rounding, which would order them by chance."""
    rng = np.random.default_rng(0)
    names = [f"s{number}" for number in range(50)]
    vectors = dict(zip(names, rng.standard_normal((50, 100)).astype(np.float32), strict=True))

    class Table:
        def encode(self, texts):
            return np.stack([vectors[text] for text in texts])

    pairs = {"sentence1": names, "sentence2": names[:25] * 2, "score": list(range(50))}
    alike = sts(Table(), pa.table(pairs), bootstrap=0).similarities["the table"]
    assert len(set(alike[:25].tolist())) == 1


def test_what_is_undefined_is_reported_as_such(hashed) -> None:
    table = pa.table(
        {
            "task": ["flat"] * 3 + ["good"] * 3,
            "sentence1": ["a", "b", "c", "a b", "a c", "b"],
            "sentence2": ["x", "y", "z", "a b", "c d", "q"],
            "score": [2.0, 2.0, 2.0, 5.0, 3.0, 0.0],
        }
    )
    scores = sts(hashed(), table)
    assert np.isnan(scores.metrics["flat/spearman"])
    assert np.isnan(scores.average)
    assert scores.metrics["good/spearman"] == pytest.approx(1)
    saved = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert saved["metrics"]["flat/spearman"] is saved["metrics"]["spearman"] is None
    assert saved["intervals"]["flat/pearson"] == [None, None]
    assert saved["pairs"] == {"flat": 3, "good": 3}


def test_a_handful_of_pairs_has_no_interval(sts_table, hashed) -> None:
    few = FEWEST - 1
    table = {name: values[: 60 + few] for name, values in sts_table.items()}  # all of STSB, the first of STS12
    scores = sts(hashed(), pa.table(table), bootstrap=20)
    assert np.isfinite(scores.intervals["STSB/spearman"]).all()
    assert np.isnan([scores.intervals["STS12/spearman"], scores.intervals["spearman"]]).all()
    assert np.isfinite(list(scores.metrics.values())).all()
    assert scores.to_dict()["intervals"]["STS12/pearson"] == [None, None]


def test_a_prompt_is_handed_on(sts_table, hashed) -> None:
    asked = []

    class Prompted(hashed):
        def encode(self, texts, prompt):
            asked.append(prompt)
            return super().encode(texts)

    sts(Prompted(), pa.table(sts_table), prompt="sts", bootstrap=0)
    assert asked == ["sts"]


def test_mistakes_are_one_line(sts_table, hashed) -> None:
    with pytest.raises(MmclError, match=r"similarity 'cosin' is not known; did you mean 'cosine'?"):
        sts(hashed(), pa.table(sts_table), similarity="cosin")

    class Broken(hashed):
        def encode(self, texts):
            return super().encode(texts) * np.nan

    with pytest.raises(MmclError, match=r"the vector of 'w.*' has a NaN"):
        sts(Broken(), pa.table(sts_table))


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_file(), reason="needs the seven STS tasks at ../shared/data/sts.parquet")
def test_minilm_meets_the_published_numbers() -> None:
    """Those that MTEB publishes for the six tasks that it takes as the paper does, and SICKR's test split."""
    published = {"STS12": 72.37, "STS13": 80.60, "STS14": 75.59, "STS15": 85.39, "STS16": 78.99, "STSB": 82.03,
                 "SICKR": 77.15}  # fmt: skip
    scores = sts(mmcl.load("sample:minilm", dtype="float32"), DATA)
    found = {task: 100 * scores.metrics[f"{task}/spearman"] for task in scores.tasks}
    assert found == pytest.approx(published, abs=0.02)


def test_alignment_is_over_pairs_scored_above_four_and_uniformity_over_all(sts_table, hashed) -> None:
    found = sts_diagnostics(hashed(), pa.table(sts_table))
    a, b = (hashed().encode(sts_table[name]).astype(float) for name in ("sentence1", "sentence2"))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    same = np.array(sts_table["score"]) > 4
    assert found.between.alignment == pytest.approx(((a - b) ** 2).sum(1)[same].mean(), abs=1e-6)
    assert found.spaces["text"].uniformity == pytest.approx(
        np.log(np.exp(-2 * distance.pdist(np.concatenate([a, b])) ** 2).mean()), abs=1e-6
    )
    table = {"sentence1": ["a b", "c"], "sentence2": ["a", "c d"]}
    unscored = open_sts(pa.table(table), scored=False)
    assert sts_diagnostics(hashed(), unscored).between.pairs == 2
    with pytest.raises(MmclError, match="1 pairs have a score above 4; alignment is of two or more"):
        sts_diagnostics(hashed(), pa.table({**table, "score": [4.0, 4.5]}))
