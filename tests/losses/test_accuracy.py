"""The accuracy of a batch on small examples; in tiles and across processes it is tested with the losses."""

from __future__ import annotations

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from mmcl.losses import batch_accuracy, label_accuracy


def test_a_tie_is_no_win_and_duplicates_do_not_compete():
    q = torch.eye(4)
    k = torch.eye(4)
    k[1] = k[0]  # rows 0 and 1 tie for query 0, and query 1 finds nothing
    assert batch_accuracy(q, k).item() == 0.5
    assert batch_accuracy(q, k, ids=torch.tensor([7, 7, 1, 2])).item() == 0.75


@pytest.mark.parametrize("classes", [3, 12])
def test_the_nearest_other_row_has_the_label_as_often_as_scikit_learn_finds(classes):
    torch.manual_seed(0)
    vectors, labels = torch.randn(30, 4), torch.randint(classes, (30,))
    nearest = NearestNeighbors(n_neighbors=2, metric="cosine").fit(vectors).kneighbors(vectors)[1][:, 1]
    counted = torch.tensor([(labels == label).sum() > 1 for label in labels])
    expected = (labels[nearest] == labels)[counted].float().mean()
    assert label_accuracy(vectors, labels).item() == pytest.approx(expected.item())


def test_without_two_rows_of_a_label_no_neighbour_is_right():
    assert label_accuracy(torch.eye(3), torch.arange(3)).item() == 0.0
