"""Vectors of fewer bits: float16, bytes by each dimension's range or each vector's scale, or a bit a dimension."""

from __future__ import annotations

import logging
from typing import Literal, get_args

import numpy as np

from mmcl.runtime.errors import MmclError, nearest

log = logging.getLogger("mmcl")

Precision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
RANGED = ("int8", "uint8")
_FEW = 100


def quantize(vectors: np.ndarray, precision: str, calibration: np.ndarray | None = None) -> np.ndarray:
    """Vectors in another precision; the numbers are those of sentence-transformers' ``quantize_embeddings``.

    Args:
        vectors: (N, D) float32.
        precision: ``float32``; ``float16``; ``int8`` or ``uint8``, where 256 equal steps span each dimension's range
            from smallest to largest value, and what lies outside becomes the nearest; ``binary`` or ``ubinary``, where
            a bit says whether a component is positive, eight of them, the first the highest, in one (un)signed byte.
        calibration: (M, D) vectors that give the ranges for ``int8`` and ``uint8``; two rows, the smallest and the
            largest values, will do. Without it ``vectors`` themselves do: then the same vector becomes other bytes in
            another call, which a warning says.

    Returns:
        (N, D), or (N, ⌈D/8⌉) bytes of bits.

    Raises:
        MmclError: unknown precision, numbers that float16 cannot hold, or a calibration of another width or, for
            ranges, of fewer than two vectors.
    """
    check_precision(precision)
    if precision == "float32":
        return vectors.astype(precision, copy=False)
    if precision == "float16":
        with np.errstate(over="ignore"):
            halves: np.ndarray = vectors.astype(precision, copy=False)
        if not np.isfinite(halves).all():
            raise MmclError("encode: float16 holds numbers up to 65,504 only; normalize, or take precision='float32'")
        return halves
    if precision in RANGED:
        low, high = _ranges(vectors, calibration)
        steps = (high - low) / 255
        steps[steps == 0] = 1
        levels = np.clip(np.floor((vectors - low) / steps), 0, 255)
        return levels.astype(np.uint8) if precision == "uint8" else (levels - 128).astype(np.int8)
    bits = np.packbits(vectors > 0, axis=-1)
    # Shifted by 128, not reinterpreted: so do sentence-transformers and the indexes that take its vectors.
    return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)


def scaled_int8(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors as bytes with a scale each, so that none depends on the others.

    ``codes * scales[:, None]`` gives them back: of the same length, turned by some 0.5°.

    Args:
        vectors: (N, D) float32, finite.

    Returns:
        (N, D) int8 codes from -127 to 127, and (N,) float32 scales: the length of the vector by that of its codes.
    """
    largest = np.abs(vectors).max(axis=1, initial=0)
    unit = np.divide(127, largest, out=np.zeros_like(largest, dtype=np.float64), where=largest > 0)
    codes = np.rint(vectors * unit[:, None]).astype(np.int8)
    lengths, of_codes = (np.linalg.norm(some.astype(np.float64), axis=1) for some in (vectors, codes))
    scales = np.divide(lengths, of_codes, out=np.zeros_like(lengths), where=of_codes > 0)
    return codes, scales.astype(np.float32)


def check_precision(precision: str) -> None:
    """Raise an :class:`MmclError` that names the nearest, unless the precision is known."""
    if precision not in PRECISIONS:
        raise MmclError(f"encode: precision '{precision}' is not known; {nearest(str(precision), PRECISIONS)}")


def _ranges(vectors: np.ndarray, calibration: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if calibration is None:
        if 0 < len(vectors) < _FEW:
            log.warning("the ranges of int8 come from these %d vectors alone; give calibration=", len(vectors))
        elif len(vectors):
            log.warning("the ranges of int8 come from these %d vectors; give calibration= to keep them", len(vectors))
        calibration = vectors
    calibration = np.asarray(calibration, dtype=np.float32)
    if calibration.ndim != 2 or calibration.shape[1] != vectors.shape[1]:
        raise MmclError(
            f"encode: calibration of shape {calibration.shape}, expected (M, {vectors.shape[1]}): encode it alike, "
            "with the same truncate_dim, or give texts"
        )
    if not len(vectors):
        return np.zeros(vectors.shape[1], np.float32), np.zeros(vectors.shape[1], np.float32)
    if not np.isfinite(calibration).all():
        raise MmclError("encode: the calibration holds NaN or infinity; leave such vectors out")
    if len(calibration) < 2:
        raise MmclError("encode: int8 and uint8 need the ranges of two vectors at least; give calibration= texts")
    return calibration.min(axis=0), calibration.max(axis=0)
