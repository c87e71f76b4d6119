from __future__ import annotations

import json

import numpy as np
import pytest

from mmcl.evaluation import few_shot, linear_probe
from mmcl.evaluation.tasks.classification.few_shot import few_rows
from mmcl.runtime.errors import MmclError


def clusters(rows: int, seed: int = 0):
    labels = np.random.default_rng(seed).integers(0, 6, rows)
    centres = np.random.default_rng(100).standard_normal((6, 16))
    vectors = centres[labels] + 1.2 * np.random.default_rng(seed + 1).standard_normal((rows, 16))
    return vectors.astype(np.float32), labels


def test_a_draw_has_its_share_of_each_class_and_one_row_at_least() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [300, 40, 3]))
    rows = few_rows(labels, 0.1, seed=0)
    assert np.bincount(labels[rows]).tolist() == [30, 4, 1]
    assert len(np.unique(rows)) == len(rows)
    np.testing.assert_array_equal(rows, few_rows(labels, 0.1, seed=0))
    assert not np.array_equal(rows, few_rows(labels, 0.1, seed=1))


def test_each_draw_is_a_linear_probe_of_its_rows() -> None:
    (train, labels), (test, test_labels) = clusters(600), clusters(150, seed=7)
    few, more = few_shot(train, labels, test, test_labels, [0.03, 0.3], seeds=3)
    for scores in (few, more):
        for seed, draw in enumerate(scores.draws):
            rows = few_rows(labels, scores.fraction, seed)
            alone = linear_probe(train[rows], labels[rows], test, test_labels, validation=0.2, seed=seed, bootstrap=0)
            assert draw == {name: alone.metrics[name] for name in ("top@1", "top@5")}
        accuracies = [draw["top@1"] for draw in scores.draws]
        assert scores.top1 == pytest.approx(np.mean(accuracies))
        assert scores.spread["top@1"] == pytest.approx(np.std(accuracies, ddof=1))
        assert scores.interval[0] < scores.top1 < scores.interval[1]
    assert more.top1 > few.top1
    assert json.loads(json.dumps(few.to_dict()))["train"] == len(few_rows(labels, 0.03, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fractions": [10]}, "the fraction 10 is no share of the labels; give one like 0.01"),
        ({"fractions": [0]}, "the fraction 0 is no share"),
        ({"seeds": 0}, "at least one fraction and one seed"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    with pytest.raises(MmclError, match=message):
        few_shot(np.eye(3), [0, 1, 1], np.eye(3), [0, 1, 1], **change)
