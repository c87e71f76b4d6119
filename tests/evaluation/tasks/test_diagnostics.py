from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from mmcl.evaluation import diagnose, diagnose_pairs
from mmcl.evaluation.tasks import diagnostics
from mmcl.runtime.errors import MmclError


def unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def sphere(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((rows, dim))).astype(np.float32)


def test_all_measures_equal_the_dense_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((70, 12)) * np.linspace(0.2, 3, 12) + 0.5
    owner = rng.integers(0, 70, 150)
    text = image[owner] + rng.standard_normal((150, 12)) + 0.3
    text[:, 4] = 0.0001 * rng.standard_normal(150)
    x, y = unit(image), unit(text)

    def check(found: diagnostics.Diagnostics) -> None:
        for name, vectors in (("image", x), ("text", y)):
            space, count = found.spaces[name], len(vectors)
            assert space.uniformity == pytest.approx(np.log(np.exp(-2 * pdist(vectors) ** 2).mean()), abs=1e-9)
            shares = np.linalg.svd(vectors, compute_uv=False)
            shares = shares / shares.sum()
            assert space.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
            cosines = vectors @ vectors.T
            assert space.random_cosine == pytest.approx(cosines[~np.eye(count, dtype=bool)].mean(), abs=1e-12)
            spectrum = np.linalg.eigvalsh(np.cov(vectors.T))
            assert space.top_component == pytest.approx(spectrum[-1] / spectrum.sum(), rel=1e-9)
        assert (found.spaces["image"].dead_dimensions, found.spaces["text"].dead_dimensions) == (0, 1)
        between, together = found.between, np.arange(70)[:, None] == owner[None]
        assert between is not None
        assert between.alignment == pytest.approx((np.linalg.norm(x[owner] - y, axis=1) ** 2).mean(), abs=1e-12)
        assert between.positive_cosine == pytest.approx((x @ y.T)[together].mean(), abs=1e-12)
        assert between.random_cosine == pytest.approx((x @ y.T)[~together].mean(), abs=1e-12)
        assert between.modality_gap == pytest.approx(np.linalg.norm(x.mean(0) - y.mean(0)), abs=1e-12)
        assert found.collapsed == []

    check(diagnose(image, text, owner))
    check(diagnose(torch.from_numpy(image) * 7, torch.from_numpy(text) / 3, owner))  # directions alone count
    monkeypatch.setattr(diagnostics, "_ROWS", 32)
    check(diagnose(image, text, owner))


def test_a_uniform_sphere_is_what_the_limits_say() -> None:
    space = diagnose(sphere(3000, 64)).spaces["image"]
    assert space.uniformity == pytest.approx(-4 + 8 / 64, abs=0.01)
    assert space.effective_rank > 63
    assert abs(space.random_cosine) < 1e-3
    assert space.top_component < 0.025
    assert (space.dead_dimensions, space.collapse()) == (0, None)


def test_collapse_is_reported_with_its_reason() -> None:
    point = sphere(1, 64) + 0.01 * sphere(500, 64, seed=1)
    found = diagnose(point, sphere(500, 64))
    assert len(found.collapsed) == 1
    assert "the image embeddings have collapsed: two random vectors have a cosine of 1.000" in found.collapsed[0]
    line = np.random.default_rng(0).choice([-1.0, 1.0], (500, 1)) * sphere(1, 64) + 1e-4 * sphere(500, 64)
    (reason,) = diagnose(line).collapsed
    assert "the effective rank is 1.0 of at most 64, below 2.0" in reason
    assert diagnose(sphere(3, 64) * 0 + 1).collapsed == []  # too few to say
    same = diagnose(np.ones((20, 4))).spaces["image"]
    assert (same.top_component, same.dead_dimensions, same.uniformity) == (1.0, 4, pytest.approx(0, abs=1e-12))


def test_a_model_that_gives_nothing_but_zeros_has_collapsed() -> None:
    found = diagnose(np.zeros((20, 8)))
    assert "the effective rank is 1.0" in found.collapsed[0]
    assert all(np.isfinite(value) for value in found.metrics().values())


def test_uniformity_of_many_rows_is_of_a_stated_sample() -> None:
    vectors = sphere(2000, 8)
    exact, sampled = (diagnose(vectors, max_rows=cap).spaces["image"] for cap in (2000, 500))
    assert (exact.uniformity_rows, sampled.uniformity_rows, sampled.rows) == (2000, 500, 2000)
    assert sampled.uniformity == pytest.approx(exact.uniformity, abs=0.02)
    assert sampled.effective_rank == exact.effective_rank


def test_numbers_for_a_log_and_for_json() -> None:
    found = diagnose(sphere(20, 4), sphere(20, 4, seed=1), names=("user", "item"))
    assert {"user/uniformity", "item/effective_rank", "alignment", "modality_gap"} <= found.metrics().keys()
    assert all(isinstance(value, float) for value in found.metrics().values())
    saved = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert saved["user"]["rows"] == saved["between"]["pairs"] == 20
    assert "between" not in diagnose(sphere(20, 4)).to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((1, 3)),), "image: a single vector"),
        ((sphere(4, 3), sphere(4, 2)), "image vectors have 3 dimensions and text vectors 2"),
        ((sphere(4, 3), sphere(5, 3)), "say with image_of_text"),
        ((sphere(4, 3), np.full((4, 3), np.nan)), "text: the vector of row 0"),
    ],
)
def test_bad_input_is_answered_in_one_line(arguments: tuple, message: str) -> None:
    with pytest.raises(MmclError, match=message):
        diagnose(*arguments)


def test_pairs_of_one_modality_by_the_dense_definition() -> None:
    """All vectors make the space; alignment is over the pairs that belong together."""
    rng = np.random.default_rng(3)
    first, second, positive = rng.standard_normal((40, 6)), rng.standard_normal((40, 6)), rng.random(40) < 0.5
    second[positive] += 3 * first[positive]
    found = diagnose_pairs(first, second, positive)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second))
    assert found.between is not None
    assert found.between.pairs == positive.sum()
    assert found.between.alignment == pytest.approx((((a - b) ** 2).sum(1)[positive]).mean())
    both = np.concatenate([a, b])
    distance = ((both[:, None] - both[None]) ** 2).sum(2)[~np.eye(80, dtype=bool)]
    assert found.spaces["text"].uniformity == pytest.approx(np.log(np.exp(-2 * distance).mean()))
    with pytest.raises(MmclError, match="1 of 40 pairs belong together; alignment needs at least two"):
        diagnose_pairs(first, second, np.arange(40) == 0)
    with pytest.raises(MmclError, match="40 and 39 vectors make no pairs"):
        diagnose_pairs(first, second[1:])
