"""What callers hand in, checked once: vectors with ids, cut-offs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mmcl.evaluation.metrics.ranking import Vectors
from mmcl.runtime.errors import MmclError

Identified: TypeAlias = Mapping[Any, Any] | tuple[Sequence[Any], Any] | Vectors
"""{id: vector}, (ids, (N, D) array), or an (N, D) array alone, whose ids are "0", "1", …"""


def with_ids(name: str, given: Identified) -> tuple[list[Any], Vectors]:
    """The ids and the (N, D) vectors of what was passed as ``name``."""
    if isinstance(given, Mapping):
        return list(given), matrix(name, _stack(name, given), ids=list(given))
    if isinstance(given, np.ndarray | Tensor):
        ids = [str(row) for row in range(len(given))]
        return ids, matrix(name, given, ids=ids)
    if not (isinstance(given, tuple) and len(given) == 2):
        raise MmclError(
            f"{name}: expected a mapping from id to vector, a pair (ids, array) or an array, not {_kind(given)}"
        )
    ids = given[0].tolist() if isinstance(given[0], np.ndarray) else list(given[0])
    vectors = matrix(name, given[1], ids=ids)
    known: set[Any] = set()
    for key in ids:
        if key in known:
            raise MmclError(f"{name}: the id {key!r} stands twice; ids must be unique")
        known.add(key)
    return ids, vectors


def matrix(name: str, given: Any, ids: Sequence[Any] | None = None) -> Vectors:
    """``given`` as an (N, D) array or tensor, neither empty nor with a NaN or infinite number in it."""
    vectors = given if isinstance(given, np.ndarray | Tensor) else np.asarray(given)
    if vectors.ndim != 2:
        raise MmclError(f"{name}: expected an (N, D) array, not one of shape {tuple(vectors.shape)}")
    if 0 in vectors.shape:
        raise MmclError(f"{name}: no vectors (the array's shape is {tuple(vectors.shape)})")
    if isinstance(vectors, np.ndarray) and vectors.dtype.kind not in "fiub":
        raise MmclError(f"{name}: expected real numbers, not an array of {vectors.dtype}")
    if ids is not None and len(ids) != len(vectors):
        raise MmclError(f"{name}: {len(ids)} ids for {len(vectors)} vectors; each vector needs one")
    _check_finite(name, vectors, ids)
    return vectors


def same_width(first: tuple[str, Vectors], second: tuple[str, Vectors]) -> None:
    """Raise MmclError unless both have vectors of the same dimension."""
    (name, one), (other, two) = first, second
    if one.shape[1] != two.shape[1]:
        raise MmclError(
            f"{name} have {one.shape[1]} dimensions and {other} {two.shape[1]}: embed both with the same model"
        )


def check_qrels(qrels: Any) -> None:
    """Raise ``MmclError`` unless these are judgements with grades that are numbers."""
    if not (isinstance(qrels, Mapping) and all(isinstance(grades, Mapping) for grades in qrels.values())):
        raise MmclError("qrels: expected {query id: {document id: grade}}, such as {'q1': {'d7': 1}}")
    for query, grades in qrels.items():
        for document, grade in grades.items():
            if not (isinstance(grade, int | float | np.number) and np.isfinite(grade)):
                raise MmclError(
                    f"qrels: the grade of document {document!r} for query {query!r} is {grade!r}, not a number"
                )


def cutoffs(ks: Iterable[int]) -> tuple[int, ...]:
    """The cut-offs k in ascending order, each once."""
    numbers = [ks] if isinstance(ks, int) else list(ks)
    for k in numbers:
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise MmclError(f"ks: a cut-off is a whole number from 1 up, not {k!r}")
    if not numbers:
        raise MmclError("ks: give at least one cut-off, such as ks=(1, 5, 10)")
    return tuple(sorted({int(k) for k in numbers}))


def codes(name: str, values: Iterable[Hashable], length: int) -> np.ndarray:
    """(N,) integers in order of first appearance, equal where ``values`` are."""
    values = values.tolist() if isinstance(values, np.ndarray | Tensor) else list(values)
    if len(values) != length:
        raise MmclError(f"{name}: {len(values)} values for {length} rows; each row needs one")
    known: dict[Hashable, int] = {}
    return np.fromiter((known.setdefault(value, len(known)) for value in values), dtype=np.int64, count=length)


def owners(given: Sequence[int] | np.ndarray | None, images: int, texts: int, names: tuple[str, str]) -> np.ndarray:
    """(texts,) the row of each text's image; by default text j belongs to image j."""
    argument = f"{names[0]}_of_{names[1]}"
    if given is None:
        if images != texts:
            raise MmclError(
                f"{images} {names[0]} and {texts} {names[1]} vectors: say with {argument} what belongs to what"
            )
        return np.arange(texts)
    owner = np.asarray(given)
    if owner.shape != (texts,) or owner.dtype.kind not in "iu":
        raise MmclError(
            f"{argument}: expected {texts} whole numbers, one a {names[1]}, not {owner.shape} of {owner.dtype}"
        )
    wrong = (owner < 0) | (owner >= images)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise MmclError(
            f"{argument}: {names[1]} {row} belongs to {names[0]} {owner[row]}, but they run from 0 to {images - 1}"
        )
    return owner.astype(np.int64)


def _check_finite(name: str, vectors: Vectors, ids: Sequence[Any] | None, rows: int = 65536) -> None:
    for start in range(0, len(vectors), rows):
        part = vectors[start : start + rows]
        finite = torch.isfinite(part).all(1).cpu().numpy() if isinstance(part, Tensor) else np.isfinite(part).all(1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            which = f"row {row}" if ids is None else f"id {ids[row]!r}"
            raise MmclError(
                f"{name}: the vector of {which} has a NaN or infinite number; embed it again or leave it out"
            )


def _stack(name: str, given: Mapping[Any, Any]) -> Vectors:
    widths = {key: tuple(np.shape(vector)) for key, vector in given.items()}
    if not widths:
        raise MmclError(f"{name}: no vectors")
    first = next(iter(widths))
    for key, shape in widths.items():
        if len(shape) != 1 or shape != widths[first]:
            raise MmclError(f"{name}: the vector of id {key!r} has shape {shape}, that of id {first!r} {widths[first]}")
    values = list(given.values())
    return torch.stack(values) if all(isinstance(value, Tensor) for value in values) else np.stack(values)


def _kind(given: Any) -> str:
    return f"{type(given).__name__} of length {len(given)}" if hasattr(given, "__len__") else type(given).__name__
