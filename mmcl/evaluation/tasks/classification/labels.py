"""Labels of two sets of rows as class numbers: of those to learn from, and of those to judge."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from mmcl.evaluation.inputs import matrix, same_width
from mmcl.evaluation.metrics.ranking import Vectors
from mmcl.runtime.errors import MmclError

Labels: TypeAlias = Sequence[Any] | np.ndarray | Tensor
log = logging.getLogger("mmcl")


@dataclass(frozen=True)
class Labelled:
    """Vectors of N training and M test rows, with their classes by number.

    Attributes:
        train: (N, D).
        train_labels: (N,) int64 from 0 to C - 1.
        test: (M, D).
        test_labels: (M,) int64; from C up for classes that no training row has, and which cannot be answered.
        names: of the classes: C of the training rows, sorted, and then those that they lack.
        classes: C.
    """

    train: Vectors
    train_labels: np.ndarray
    test: Vectors
    test_labels: np.ndarray
    names: list[Any]
    classes: int


def labelled(train_vectors: Vectors, train_labels: Labels, test_vectors: Vectors, test_labels: Labels) -> Labelled:
    """Check and number what a classifier is given. Test rows of a class that is not trained are counted and reported.

    Raises:
        MmclError: vectors that are empty, not finite or of different widths; a number of labels that is not that of the
            vectors; training rows of fewer than two classes.
    """
    train, test = matrix("training vectors", train_vectors), matrix("test vectors", test_vectors)
    same_width(("training vectors", train), ("test vectors", test))
    own, other = _values("training labels", train_labels, train), _values("test labels", test_labels, test)
    known = _ordered(set(own))
    if len(known) < 2:
        raise MmclError(f"training labels: every row has the class {known[0]!r}; at least two classes are needed")
    lacking = _ordered(set(other) - set(known))
    code = {name: number for number, name in enumerate([*known, *lacking])}
    numbers = np.array([code[label] for label in other], dtype=np.int64)
    if lacking:
        log.warning(
            "%d of %d test rows are of %d classes that no training row has, such as %r: they count as wrong",
            *((numbers >= len(known)).sum(), len(numbers), len(lacking), lacking[0]),
        )
    own_numbers = np.array([code[label] for label in own], dtype=np.int64)
    return Labelled(train, own_numbers, test, numbers, [*known, *lacking], len(known))


def _values(name: str, labels: Labels, vectors: Vectors) -> list[Any]:
    values = labels.tolist() if isinstance(labels, np.ndarray | Tensor) else list(labels)
    if len(values) != len(vectors):
        raise MmclError(f"{name}: {len(values)} labels for {len(vectors)} vectors; each vector needs one")
    if any(value is None or isinstance(value, list) for value in values):
        raise MmclError(f"{name}: expected one class a row, as text or a whole number")
    return values


def _ordered(names: set[Any]) -> list[Any]:
    """Numbers by size, texts by the alphabet; a mixture by how it is written."""
    try:
        return sorted(names)
    except TypeError:
        return sorted(names, key=str)
