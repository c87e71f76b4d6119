"""Vectors of fewer bits, against sentence-transformers'."""

from __future__ import annotations

import numpy as np
import pytest
from sentence_transformers.util.quantization import quantize_embeddings

from mmcl.encoding.quantize import quantize
from mmcl.runtime.errors import MmclError

RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.normal(size=(300, 20)).astype(np.float32)
CALIBRATION = RANDOM.normal(size=(150, 20)).astype(np.float32)


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
def test_equals_sentence_transformers(precision):
    for calibration in (None, CALIBRATION):
        theirs = quantize_embeddings(VECTORS, precision, calibration_embeddings=calibration)
        ours = quantize(VECTORS, precision, calibration)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_two_rows_of_ranges_are_a_calibration_and_a_constant_dimension_is_allowed():
    vectors = VECTORS.copy()
    vectors[:, 3] = 0.5
    ranges = np.stack([vectors.min(axis=0), vectors.max(axis=0)])
    np.testing.assert_array_equal(quantize(vectors, "int8", ranges), quantize_embeddings(vectors, "int8", ranges))


def test_bytes_keep_what_is_near():
    levels = quantize(VECTORS, "uint8", CALIBRATION).astype(np.float32)
    low, high = CALIBRATION.min(axis=0), CALIBRATION.max(axis=0)
    back = low + (levels + 0.5) * (high - low) / 255
    inside = (low <= VECTORS) & (high >= VECTORS)
    assert (np.abs(back - VECTORS) <= (high - low) / 255)[inside].all()


def test_shapes_without_vectors():
    empty = np.zeros((0, 20), np.float32)
    assert quantize(empty, "int8").shape == (0, 20)
    assert quantize(empty, "ubinary").shape == (0, 3)
    assert quantize(empty, "float16").dtype == np.float16


def test_mistakes_are_answered_in_one_line(caplog):
    with pytest.raises(MmclError, match="precision 'int4' is not known; did you mean 'int8'"):
        quantize(VECTORS, "int4")
    with pytest.raises(MmclError, match=r"calibration of shape \(150, 3\), expected \(M, 20\)"):
        quantize(VECTORS, "int8", CALIBRATION[:, :3])
    with pytest.raises(MmclError, match="need the ranges of two vectors"):
        quantize(VECTORS[:1], "int8")
    with pytest.raises(MmclError, match="calibration holds NaN"):
        quantize(VECTORS, "int8", np.where(CALIBRATION > 1, np.nan, CALIBRATION))
    quantize(VECTORS[:9], "int8")
    assert "come from these 9 vectors alone" in caplog.text


def test_what_float16_cannot_hold_is_an_error():
    with pytest.raises(MmclError, match=r"float16 holds numbers up to 65,504 only"):
        quantize(np.array([[1.0, 70_000.0]], dtype=np.float32), "float16")
