"""Pairs above a threshold, against all products in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmcl.retrieval.similar import pairs as module
from mmcl.retrieval.similar.pairs import UnitVectors, similar_pairs, similar_pairs_by_index
from mmcl.runtime.errors import MmclError


def all_of(found):
    parts = list(found)
    if not parts:
        return {}
    first, second, scores = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    keys = list(zip(first.tolist(), second.tolist(), strict=True))
    assert len(keys) == len(set(keys)), "each pair once"
    return dict(zip(keys, scores.tolist(), strict=True))


def expected(cosines, threshold):
    return {(i, j) for i, j in np.argwhere(np.triu(cosines, 1) >= threshold).tolist() if i < j}


@pytest.mark.parametrize("threshold", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("memory", [1 << 30, 0])
@pytest.mark.parametrize("rounded", [False, True])
def test_pairs_are_those_of_all_products(clustered, cosines, threshold, memory, rounded, monkeypatch):
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda device: rounded)
    found = all_of(similar_pairs(UnitVectors(clustered, memory), threshold, block=64))
    assert found.keys() == expected(cosines, threshold)
    for (i, j), score in found.items():
        assert score == pytest.approx(cosines[i, j], abs=1e-6)


def test_pairs_between_two_corpora(clustered, cosines):
    one, other = UnitVectors(clustered[:100]), UnitVectors(torch.from_numpy(clustered[100:]))
    found = all_of(similar_pairs(one, 0.8, other, block=64))
    assert found.keys() == {(i, j) for i, j in np.argwhere(cosines[:100, 100:] >= 0.8).tolist()}


def test_a_flat_index_finds_the_same_also_where_a_row_has_many(clustered, cosines):
    vectors = UnitVectors(clustered)
    assert max(np.count_nonzero(cosines >= 0.5, axis=1)) > 2 * module.NEIGHBOURS
    assert all_of(similar_pairs_by_index(vectors, 0.5)).keys() == expected(cosines, 0.5)
    between = all_of(similar_pairs_by_index(UnitVectors(clustered[:100]), 0.5, UnitVectors(clustered[100:])))
    assert between.keys() == {(i, j) for i, j in np.argwhere(cosines[:100, 100:] >= 0.5).tolist()}


def test_vectors_that_cannot_be_compared_are_refused(clustered):
    with pytest.raises(MmclError, match="16 dimensions, those to compare with 8"):
        list(similar_pairs(UnitVectors(clustered), 0.5, UnitVectors(clustered[:, :8])))
    with pytest.raises(MmclError, match="there are no vectors"):
        UnitVectors(clustered[:0])
    broken = clustered.copy()
    broken[3] = 0
    with pytest.raises(MmclError, match="id 3 is a zero vector"):
        UnitVectors(broken).block(0, 5)
