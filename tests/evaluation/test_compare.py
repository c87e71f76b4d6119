from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from scipy.stats import binomtest, permutation_test

from mmcl.evaluation import compare, retrieval_pairs, zero_shot
from mmcl.evaluation.compare import Queries, holm, read_per_query, sign_flip_test
from mmcl.evaluation.left_out import WITHOUT_OWN
from mmcl.runtime.errors import MmclError


def queries(values: np.ndarray, groups: np.ndarray | None = None, name: str = "hit@1") -> dict[str, Queries]:
    return {"part": Queries(list(range(len(values))), groups, {name: np.asarray(values, dtype=np.float64)})}


def test_small_samples_are_enumerated_as_scipy_does() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 11))
    expected = permutation_test(
        (a, b), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", vectorized=True, n_resamples=np.inf
    )
    assert sign_flip_test((b - a)[:, None])[0] == pytest.approx(expected.pvalue)


def test_large_samples_come_near_the_exact_answer() -> None:
    rng = np.random.default_rng(1)
    difference = rng.choice([-1, 0, 1], 120, p=[0.1, 0.7, 0.2])
    ahead, behind = (difference > 0).sum(), (difference < 0).sum()
    mcnemar = binomtest(int(ahead), int(ahead + behind)).pvalue
    assert sign_flip_test(difference[:, None].astype(float))[0] == pytest.approx(mcnemar, abs=0.01)
    assert sign_flip_test(np.ones((60, 1)))[0] == 1 / 10_001  # never 0
    assert sign_flip_test(np.zeros((60, 2))).tolist() == [1.0, 1.0]


def test_few_hits_give_mcnemars_exact_p() -> None:
    difference = np.array([1.0] * 8 + [-1.0] * 2 + [0.0] * 40)
    assert sign_flip_test(difference[:, None])[0] == pytest.approx(binomtest(8, 10).pvalue)


def test_the_signs_of_a_group_are_flipped_together() -> None:
    difference, groups = np.random.default_rng(2).standard_normal(15), np.repeat(np.arange(5), 3)
    totals = difference.reshape(5, 3).sum(1)
    patterns = np.array(list(itertools.product([-1, 1], repeat=5)))
    expected = (np.abs(patterns @ totals) >= abs(totals.sum()) - 1e-12).mean()
    assert sign_flip_test(difference[:, None], groups)[0] == pytest.approx(expected)


def test_p_values_are_uniform_where_there_is_no_difference() -> None:
    rng = np.random.default_rng(3)
    p = sign_flip_test(rng.standard_normal((200, 400)), resamples=500)
    assert np.quantile(p, [0.05, 0.5, 0.95]) == pytest.approx([0.05, 0.5, 0.95], abs=0.06)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_interval_is_the_bootstrap_of_the_paired_difference() -> None:
    rng = np.random.default_rng(4)
    a = rng.random(300)
    b = a + 0.02 + 0.1 * rng.standard_normal(300)  # the difference varies less than either
    found = compare(queries(a, name="mrr"), queries(b, name="mrr")).differences["part/mrr"]
    standard_error = (b - a).std() / 300**0.5
    assert (found.a, found.b) == pytest.approx((a.mean(), b.mean()))
    assert found.difference == pytest.approx((b - a).mean())
    assert found.low == pytest.approx(found.difference - 1.96 * standard_error, abs=0.1 * standard_error)
    assert found.high == pytest.approx(found.difference + 1.96 * standard_error, abs=0.1 * standard_error)


def test_five_copies_of_a_query_prove_no_more_than_one() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 2, (2, 40)).astype(float)
    once = compare(queries(a), queries(b)).differences["part/hit@1"]
    groups = np.repeat(np.arange(40), 5)
    copied = compare(queries(np.repeat(a, 5), groups), queries(np.repeat(b, 5), groups)).differences["part/hit@1"]
    assert (copied.low, copied.high, copied.p) == pytest.approx((once.low, once.high, once.p))
    assert (copied.queries, copied.groups) == (200, 40)
    alone = compare(queries(np.repeat(a, 5)), queries(np.repeat(b, 5))).differences["part/hit@1"]
    assert alone.high - alone.low < 0.6 * (once.high - once.low)


def test_the_verdict_names_who_is_ahead_and_on_what() -> None:
    rng = np.random.default_rng(6)
    text = rng.standard_normal((150, 8))
    good, bad = (retrieval_pairs(text + noise * rng.standard_normal((150, 8)), text) for noise in (0.3, 3.0))
    found = compare(bad, good)
    assert set(found.differences) == {
        f"{way}/{metric}"
        for way in ("image_to_text", "text_to_image")
        for metric in ("hit@1", "hit@5", "hit@10", "mrr")
    }
    assert all(row.ahead == "b" for row in found.differences.values())
    assert found.verdict("old", "new").startswith("new is ahead beyond the interval on image_to_text/hit@1, ")
    assert compare(good, bad).differences["image_to_text/mrr"].ahead == "a"
    assert "no difference between A and B is beyond chance on any of the 8 metrics" in compare(good, good).verdict()
    assert list(compare(bad, good, ["ndcg@10"]).differences) == ["image_to_text/ndcg@10", "text_to_image/ndcg@10"]
    json.dumps(found.to_dict(), allow_nan=False)


def test_means_over_classes_are_means_over_images() -> None:
    rng = np.random.default_rng(7)
    labels, classes = np.append(np.arange(4), rng.integers(0, 4, 80) ** 2 // 4), rng.standard_normal((6, 5))
    scores = zero_shot(rng.standard_normal((84, 5)), labels, classes, bootstrap=0)
    found = compare({"zero_shot": scores}, {"zero_shot": scores})
    assert {name: row.a for name, row in found.differences.items()} == pytest.approx(
        {f"zero_shot/{name}": value for name, value in scores.metrics.items()}
    )


def test_what_was_written_is_read(tmp_path) -> None:
    rng = np.random.default_rng(8)
    scores = retrieval_pairs(rng.standard_normal((9, 4)), rng.standard_normal((18, 4)), np.repeat(np.arange(9), 2))
    saved = {way: judged.to_dict() | {"per_query": Queries.of(judged).to_dict()} for way, judged in scores.items()}
    (tmp_path / "a.json").write_text(json.dumps(saved | {"clip_benchmark": {}}))
    read = read_per_query(tmp_path / "a.json")
    assert compare(read, scores).to_dict() == compare(scores, scores).to_dict()
    (tmp_path / "b.json").write_text(json.dumps(scores["image_to_text"].to_dict()))
    with pytest.raises(MmclError, match="write it with --json FILE --per-query"):
        read_per_query(tmp_path / "b.json")
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(MmclError, match="not a file that mmcl eval wrote"):
        read_per_query(tmp_path / "c.json")
    with pytest.raises(MmclError, match="no such file"):
        read_per_query(tmp_path / "d.json")


def test_what_cannot_be_compared_is_reported_in_one_line() -> None:
    one, two = queries(np.ones(3)), queries(np.ones(4))
    with pytest.raises(MmclError, match="3 and 4 queries in A and B"):
        compare(one, two)
    with pytest.raises(MmclError, match="A was judged on part, B on other"):
        compare(one, {"other": one["part"]})
    with pytest.raises(MmclError, match=r"did you mean 'hit@1'\?"):
        compare(one, one, ["hits@1"])
    with pytest.raises(MmclError, match="resamples is 0"):
        compare(one, one, resamples=0)
    elsewhere = {"part": Queries([0, 1, 2], None, one["part"].values, data="other rows")}
    with pytest.raises(MmclError, match="different queries or answers"):
        compare(one, elsewhere)
    without_own = {"part": Queries([0, 1, 2], None, one["part"].values, data=f"other rows{WITHOUT_OWN}")}
    with pytest.raises(MmclError, match="judge both with the same --self-matches"):
        compare(without_own, elsewhere)
