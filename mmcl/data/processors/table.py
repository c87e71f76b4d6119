"""The columns of a table to what a table tower reads: numbers of known values, and standardised numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mmcl.config.model import CategoryFieldConfig
from mmcl.data.cache.tokens import pad
from mmcl.data.identity import stable_hash
from mmcl.data.processors.image import ImageProcessor
from mmcl.data.processors.text import TextProcessor
from mmcl.data.rows import label_of


@dataclass(frozen=True)
class Categories:
    """Values to their numbers from 1 on; 0 is none.

    Attributes:
        vocabulary: the values that are known, in the order of their numbers; None where they are hashed.
        buckets: that values are hashed into; None where they are known.
        separator: what stands between the values of a text; None: a text is one value.
        without: column whose values are left out of a row's own.
        dropout: share of the values that training leaves out at random.
    """

    vocabulary: list[str] | None = None
    buckets: int | None = None
    separator: str | None = None
    without: str | None = None
    dropout: float = 0.0

    @classmethod
    def fit(cls, section: CategoryFieldConfig, cells: Iterable[Any]) -> Categories:
        """The values of these cells, as far as the section wants them.

        Raises:
            ValueError: a value is neither text nor a whole number.
        """
        vocabulary = None
        if section.buckets is None:
            labels = _Memo(label_of)
            counts = Counter[Any]()
            for cell in cells:
                counts.update(set(labels.of(values_of(cell, section.separator))))
            del counts[None]
            vocabulary = sorted(value for value, count in counts.items() if count >= section.min_count)
        return cls(vocabulary, section.buckets, section.separator, section.without, section.dropout)

    @property
    def entries(self) -> int:
        """Numbers that a value can have, 0 included."""
        return 1 + (self.buckets if self.vocabulary is None else len(self.vocabulary))  # type: ignore[operator]

    @cached_property
    def _number_of(self) -> dict[str, int]:
        return {value: number for number, value in enumerate(self.vocabulary or (), start=1)}

    def number(self, value: Any) -> int:
        """Of a value; 0 of one that is not known, and -1 of none.

        Raises:
            ValueError: it is neither text nor a whole number.
        """
        label = label_of(value)
        if label is None:
            return -1
        if self.buckets is not None:
            return 1 + stable_hash(label) % self.buckets
        return self._number_of.get(label, 0)

    def value(self, number: int) -> str:
        """The value of a number from 1 on, or the bucket that it is."""
        return f"bucket {number}" if self.vocabulary is None else self.vocabulary[number - 1]

    def read(self, cells: Sequence[Any], left_out: Sequence[Any] | None = None) -> tuple[list[np.ndarray], int]:
        """The numbers of each cell's values, int32, and how many values are not known.

        Args:
            cells: values, or lists of them.
            left_out: of each cell, values that are left out.

        Raises:
            ValueError: a value is neither text nor a whole number.
        """
        number_of, found, unknown = _Memo(self.number), [], 0
        for place, cell in enumerate(cells):
            own = np.array(number_of.of(values_of(cell, self.separator)), dtype=np.int32)
            unknown += int((own == 0).sum())
            if left_out is not None:
                for other in number_of.of(values_of(left_out[place], self.separator)):
                    own = own[own != other]
            found.append(own[own > 0])
        return found, unknown

    def collate(self, cells: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """``values``, int64 (N, L): what :meth:`read` gave of N cells, filled up with 0."""
        return {"values": torch.from_numpy(pad(cells, 0)[0])}


@dataclass(frozen=True)
class Numbers:
    """Numbers to their standard scores.

    Attributes:
        mean: that is subtracted.
        deviation: that is divided by.
    """

    mean: float
    deviation: float

    @classmethod
    def fit(cls, numbers: np.ndarray) -> Numbers:
        """By mean and deviation of (N,) numbers, those that are finite."""
        there = numbers[np.isfinite(numbers)]
        deviation = float(there.std()) if len(there) else 0.0
        return cls(float(there.mean()) if len(there) else 0.0, deviation or 1.0)

    def read(self, cells: Sequence[Any], left_out: object = None) -> tuple[list[np.ndarray], int]:
        """The standard score of each cell and 1, or 0 and 0 where it is no number; and how many texts are none."""
        given = np.array([_number(cell) for cell in cells], dtype=np.float64)
        there = np.isfinite(given)
        scores = np.where(there, (given - self.mean) / self.deviation, 0.0)
        odd = sum(not ok and cell not in (None, "") and cell == cell for ok, cell in zip(there, cells, strict=True))
        return list(np.stack([scores, there], axis=1).astype(np.float32)), odd

    def collate(self, cells: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """``numbers``, float32 (N, 2)."""
        return {"numbers": torch.from_numpy(np.stack(cells))}


Cells: TypeAlias = Categories | Numbers
Field: TypeAlias = Cells | TextProcessor | ImageProcessor


@dataclass
class TableProcessor:
    """Rows to what the fields of a table tower read.

    Attributes:
        fields: column to what reads it.
    """

    fields: Mapping[str, Field]

    @property
    def columns(self) -> list[str]:
        """The columns that are read of a row; not those whose values are only left out of others."""
        return list(self.fields)

    @property
    def images(self) -> list[str]:
        """Those of them that hold images."""
        return [name for name, field in self.fields.items() if isinstance(field, ImageProcessor)]

    @property
    def dropout(self) -> dict[str, float]:
        """Column to the share of its values that training leaves out, where it does."""
        return {
            name: field.dropout
            for name, field in self.fields.items()
            if isinstance(field, Categories) and field.dropout
        }

    def cells(self) -> dict[str, dict[str, Any]]:
        """What describes the fields of categories and numbers, in values that JSON can hold."""
        return {name: asdict(field) for name, field in self.fields.items() if isinstance(field, Categories | Numbers)}


def cells_from(description: Mapping[str, Any]) -> Cells:
    """A field as :meth:`TableProcessor.cells` describes it."""
    return Numbers(**description) if "mean" in description else Categories(**description)


class _Memo(dict[Any, Any]):
    """A function of values, of which equal ones are computed once."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, value: Any) -> Any:
        self[value] = found = self._function(value)
        return found

    def of(self, values: Iterable[Any]) -> list[Any]:
        """The function of each value. Raises ``ValueError`` for a list or a mapping among them."""
        try:
            return [self[value] for value in values]
        except TypeError as error:
            raise ValueError(f"what is no value ({error}), where values are text or whole numbers") from None


def values_of(cell: Any, separator: str | None = None) -> Sequence[Any]:
    """The values of a cell, which may be one."""
    if isinstance(cell, str) and separator is not None:
        return [part.strip() for part in cell.split(separator)]
    return list(cell) if isinstance(cell, list | tuple | np.ndarray) else [cell]


def _number(cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return math.nan
