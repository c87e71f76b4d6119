from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from lightly.utils.benchmarking import knn_predict
from torch.nn import functional as F

from mmcl.evaluation import knn
from mmcl.evaluation.tasks.classification.knn import knn_table
from mmcl.runtime.errors import MmclError


def clusters(rows: int, classes: int = 5, dim: int = 12, noise: float = 2.0, seed: int = 0):
    """Vectors around a centre for each class, and their labels."""
    labels = np.random.default_rng(seed).integers(0, classes, rows)
    centres = np.random.default_rng(100).standard_normal((classes, dim))
    vectors = centres[labels] + noise * np.random.default_rng(seed + 1).standard_normal((rows, dim))
    return vectors.astype(np.float32), labels


@pytest.mark.parametrize(("k", "temperature"), [(200, 0.1), (20, 0.07), (1, 0.1), (200, 0.01)])
def test_accuracy_equals_lightlys(k: int, temperature: float) -> None:
    train, train_labels = clusters(900)
    test, test_labels = clusters(300, seed=7)
    # In float64, since in float32 their weights overflow at the lowest temperature.
    bank, queries = (F.normalize(torch.from_numpy(vectors).double()) for vectors in (train, test))
    theirs = knn_predict(queries, bank.T, torch.from_numpy(train_labels), num_classes=5, knn_k=k, knn_t=temperature)
    scores = knn(train, train_labels, test, test_labels, k=k, temperature=temperature)
    assert np.array_equal(scores.ranks == 1, theirs[:, 0].numpy() == test_labels)
    assert scores.top1 == (theirs[:, 0].numpy() == test_labels).mean()
    assert scores.interval[0] < scores.top1 < scores.interval[1]
    assert scores.chance()["top@1"] == pytest.approx(1 / 5)


def test_several_settings_equal_each_by_itself() -> None:
    rows = (*clusters(300), *clusters(80, seed=5))
    table = knn_table(*rows, ks=[5, 50], temperatures=[0.05, 0.5], bootstrap=0)
    assert [(scores.k, scores.temperature) for scores in table] == [(5, 0.05), (5, 0.5), (50, 0.05), (50, 0.5)]
    for scores in table:
        np.testing.assert_array_equal(scores.ranks, knn(*rows, k=scores.k, temperature=scores.temperature).ranks)


def test_labels_may_be_names_and_vectors_tensors() -> None:
    train, train_labels = clusters(200)
    test, test_labels = clusters(60, seed=5)
    names = np.array(["cat", "dog", "bee", "ant", "elk"])
    by_number = knn(train, train_labels, test, test_labels, k=10)
    by_name = knn(
        torch.from_numpy(train), names[train_labels].tolist(), torch.from_numpy(test), names[test_labels], k=10
    )
    assert by_name.top1 == by_number.top1
    assert by_name.per_class == {str(names[label]): share for label, share in by_number.per_class.items()}
    assert json.loads(json.dumps(by_name.to_dict()))["k"] == 10


def test_a_class_without_training_rows_counts_as_wrong_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    train = np.eye(2, dtype=np.float32)
    with caplog.at_level(logging.WARNING, "mmcl"):
        scores = knn(train, ["a", "b"], np.eye(2, dtype=np.float32)[[0, 1, 1, 1]], ["a", "b", "c", "c"], k=1)
    assert scores.metrics == {"top@1": 0.5, "mean_per_class": pytest.approx(2 / 3)}
    assert scores.per_class == {"a": 1.0, "b": 1.0, "c": 0.0}
    assert (scores.classes, scores.not_offered) == (2, 2)
    assert scores.chance() == {"top@1": 0.25, "mean_per_class": pytest.approx(1 / 3)}
    assert "2 of 4 test rows are of 1 classes that no training row has, such as 'c'" in caplog.text


def test_a_tie_never_helps() -> None:
    """A network that has collapsed gives every image the same vector; with as many rows of each class it scores 0."""
    same = np.ones((10, 4), dtype=np.float32)
    assert knn(same, [0, 1] * 5, same, [0, 1] * 5, k=10).top1 == 0


def test_more_neighbours_than_rows_are_all_of_them(caplog: pytest.LogCaptureFixture) -> None:
    rows = (*clusters(50), *clusters(20, seed=5))
    with caplog.at_level(logging.WARNING, "mmcl"):
        assert knn(*rows).k == 50
    assert "k is 200, but there are 50 training rows" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": [0, 0, 0]}, "every row has the class 0; at least two classes are needed"),
        ({"train_labels": [0, 1]}, "training labels: 2 labels for 3 vectors"),
        ({"test_labels": [0, None, 1]}, "test labels: expected one class a row"),
        ({"test_vectors": np.eye(3, 4)}, "training vectors have 3 dimensions and test vectors 4"),
        ({"test_vectors": np.full((3, 3), np.nan)}, "test vectors: the vector of row 0 has a NaN"),
        ({"k": 0}, "k is 0; give a number of neighbours from 1 up"),
        ({"temperature": 0.0}, "the temperature is 0.0; give a number above 0"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    given = {"train_vectors": np.eye(3), "train_labels": [0, 1, 1], "test_vectors": np.eye(3), "test_labels": [0, 1, 1]}
    with pytest.raises(MmclError, match=message):
        knn(**(given | change))
