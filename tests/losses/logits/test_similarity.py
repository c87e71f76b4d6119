"""Cosines of vectors of any length, in every place that computes one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mmcl
from mmcl.encoding.compute import finished
from mmcl.encoding.inputs import Options
from mmcl.evaluation.tasks.sts import _compare
from mmcl.losses.logits.similarity import unit_length, unit_rows

SCALES = [1e37, 1e20, 1.0, 1e-25, 1e-37]
VECTORS = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
UNIT = VECTORS / np.linalg.norm(VECTORS.astype(np.float64), axis=1, keepdims=True)
IDS = [str(i) for i in range(12)]


def scaled(scale):
    return (VECTORS * np.float32(scale)).astype(np.float32)


@pytest.mark.parametrize("scale", SCALES)
def test_vectors_of_any_length_have_unit_length_and_their_direction(scale):
    np.testing.assert_allclose(unit_rows(scaled(scale)), UNIT, atol=2e-7)
    given = torch.from_numpy(scaled(scale))
    np.testing.assert_allclose(unit_length(given).numpy(), UNIT, atol=2e-7)
    vectors = finished(given, Options(None, True, 8, None, "float32"))
    np.testing.assert_allclose(vectors, UNIT, atol=2e-7)


def test_ordinary_vectors_have_the_very_bits_of_torchs_normalize_and_its_gradient():
    given = torch.from_numpy(VECTORS)
    assert torch.equal(unit_length(given), torch.nn.functional.normalize(given, dim=1))
    assert torch.autograd.gradcheck(unit_length, given[:3].double().requires_grad_())
    assert not unit_length(torch.zeros(2, 3)).any()
    assert not unit_rows(np.zeros((2, 3), np.float32)).any()


@pytest.mark.parametrize("scale", SCALES)
def test_searches_evaluations_and_losses_know_no_length(scale):
    index = mmcl.Index.build(scaled(scale), spec="Flat")
    ids, scores = index.search(scaled(1 / scale), k=2)
    assert ids[:, 0].tolist() == list(range(12))
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-6)
    grades = {name: {name: 1} for name in IDS}
    found = mmcl.evaluation.retrieval((IDS, scaled(scale)), (IDS, scaled(1 / scale)), grades, ks=(1,))
    assert found.metrics["hit@1"] == 1
    np.testing.assert_allclose(_compare(scaled(scale), VECTORS, "cosine"), 1, atol=1e-6)
    loss = mmcl.losses.info_nce(torch.from_numpy(scaled(scale)), torch.from_numpy(VECTORS[::-1].copy()))
    plain = mmcl.losses.info_nce(torch.from_numpy(VECTORS), torch.from_numpy(VECTORS[::-1].copy()))
    torch.testing.assert_close(loss, plain)
