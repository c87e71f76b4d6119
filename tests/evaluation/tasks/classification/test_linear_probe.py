from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmcl.evaluation import linear_probe
from mmcl.evaluation.metrics.logistic import Standardised, fit_logistic
from mmcl.evaluation.tasks.classification import linear_probe as module
from mmcl.evaluation.tasks.classification.linear_probe import validation_rows
from mmcl.runtime.errors import MmclError

CLASSES, DIM = 6, 16


def clusters(rows: int, seed: int = 0, noise: float = 1.5):
    """Vectors of very different scales around a centre for each class, and their labels; one dimension is constant."""
    labels = np.random.default_rng(seed).integers(0, CLASSES, rows)
    centres = np.random.default_rng(100).standard_normal((CLASSES, DIM))
    vectors = (centres[labels] + noise * np.random.default_rng(seed + 1).standard_normal((rows, DIM))) * np.geomspace(
        0.01, 10, DIM
    ) + 3
    vectors[:, 5] = 2
    return vectors.astype(np.float32), labels


def scikit(vectors, labels, l2):
    """The same model by scikit-learn, in float64."""
    model = LogisticRegression(C=1 / (l2 * len(labels)), max_iter=5000, tol=1e-9)
    return make_pipeline(StandardScaler(), model).fit(vectors.astype(np.float64), labels)


@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
def test_the_probabilities_equal_scikit_learns(l2: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmcl.evaluation.metrics.logistic._ROWS", 128)  # in several blocks
    (train, labels), (test, _) = clusters(500), clusters(200, seed=7)
    features = Standardised.of(train, torch.device("cpu"))
    ours = fit_logistic(features.values, torch.from_numpy(labels), CLASSES, l2)(features.map(test)).softmax(1)
    np.testing.assert_allclose(ours, scikit(train, labels, l2).predict_proba(test.astype(np.float64)), atol=2e-3)


def test_accuracies_equal_scikit_learns_at_a_fixed_penalty() -> None:
    (train, labels), (test, test_labels) = clusters(500), clusters(300, seed=7)
    scores = linear_probe(train, labels, test, test_labels, l2=1e-3)
    probabilities = scikit(train, labels, 1e-3).predict_proba(test.astype(np.float64))
    second, first = np.sort(probabilities, 1)[:, -2:].T
    clear = first - second > 4e-3  # twice what the probabilities may be off by
    assert clear.mean() > 0.98
    np.testing.assert_array_equal((scores.ranks == 1)[clear], (probabilities.argmax(1) == test_labels)[clear])
    assert scores.top1 == (scores.ranks == 1).mean()
    assert scores.interval[0] < scores.top1 < scores.interval[1]
    assert scores.metrics["top@5"] > scores.top1
    assert scores.validation == {}
    assert json.loads(json.dumps(scores.to_dict()))["l2"] == 1e-3


def test_the_penalty_is_the_most_likely_on_validation_rows_and_the_test_rows_choose_nothing() -> None:
    (train, labels), (test, test_labels) = clusters(400, noise=3), clusters(200, seed=7)
    scores = linear_probe(train, labels, test, test_labels, bootstrap=0)
    held = validation_rows(labels, 0.1)
    for l2, loss in scores.validation.items():
        if l2 > 1e-4:  # of the weakest the optimum is far out and flat
            model = scikit(train, labels, l2)[0:1]  # standardised by all training rows, as the final fit is
            fitted = LogisticRegression(C=1 / (l2 * (~held).sum()), max_iter=5000, tol=1e-9)
            values = model.transform(train.astype(np.float64))
            probabilities = fitted.fit(values[~held], labels[~held]).predict_proba(values[held])
            assert loss == pytest.approx(log_loss(labels[held], probabilities), abs=2e-3)
    assert scores.l2 == min(scores.validation, key=scores.validation.__getitem__)
    assert min(module.PENALTIES) < scores.l2 < max(module.PENALTIES)
    other = linear_probe(train, labels, test[::-1] * 5, np.roll(test_labels, 3), bootstrap=0)
    assert (other.l2, other.validation) == (scores.l2, scores.validation)


def test_validation_rows_are_a_share_of_each_class_and_never_the_last_of_one() -> None:
    labels = np.repeat([0, 1, 2, 3], [100, 20, 3, 1])
    held = validation_rows(labels, 0.2)
    assert np.bincount(labels[held], minlength=4).tolist() == [20, 4, 1, 0]
    np.testing.assert_array_equal(held, validation_rows(labels, 0.2))
    assert not np.array_equal(held, validation_rows(labels, 0.2, seed=1))


def test_one_row_a_class_leaves_none_to_choose_by_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mmcl"):
        scores = linear_probe(np.eye(3), [0, 1, 2], np.eye(3), [0, 1, 2])
    assert scores.top1 == 1
    assert "3 rows of 3 classes leave none to choose the penalty by: it is 0.01" in caplog.text


def test_a_class_without_training_rows_counts_as_wrong() -> None:
    (train, labels), (test, test_labels) = clusters(400), clusters(200, seed=7)
    known = labels != 2
    scores = linear_probe(train[known], labels[known], test, test_labels, l2=1e-2, bootstrap=0)
    assert scores.per_class[2] == 0
    assert scores.not_offered == (test_labels == 2).sum()
    assert (scores.ranks[test_labels == 2] == CLASSES).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"l2": 0.0}, "l2 is 0.0; give a number above 0"),
        ({"validation": 1.0}, "validation is 1.0; give the share"),
        ({"train_labels": [1, 1, 1]}, "every row has the class 1; at least two classes"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    given = {"train_vectors": np.eye(3), "train_labels": [0, 1, 1], "test_vectors": np.eye(3), "test_labels": [0, 1, 1]}
    with pytest.raises(MmclError, match=message):
        linear_probe(**(given | change))
