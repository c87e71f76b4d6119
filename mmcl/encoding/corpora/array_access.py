"""Vectors too many for memory, used like an array."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mmcl.encoding.corpora.stored import to_numpy


class ArrayAccess(ABC):
    """What vectors offer that are read shard by shard, from four methods that know where they are.

    Attributes:
        dim: components of a vector.
    """

    dim: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def table(self) -> pa.Table:
        """An Arrow table of N rows: the column ``id`` and what else is kept beside the vectors."""

    @abstractmethod
    def iter_shards(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids (n,) and vectors (n, D) of each shard in order."""

    @abstractmethod
    def take(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The vectors at these positions, in this order, as float32 (n, D)."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return len(self), self.dim

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All vectors in memory, (N, D) float32 unless another dtype is asked for."""
        if copy is False:
            raise ValueError("vectors on disk cannot become an array without a copy")
        return self.take(range(len(self))).astype(dtype or np.float32, copy=False)

    def __getitem__(self, index: Any) -> np.ndarray:
        """float32: (D,) for a position, which may count from the end; (n, D) for a slice, positions, or (N,) bool."""
        positions = np.arange(len(self))[index]
        return self.take(np.atleast_1d(positions))[0] if positions.ndim == 0 else self.take(positions)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Every vector, (D,) float32, in order."""
        for _, shard in self.iter_shards():
            for vector in shard:
                yield np.array(vector, np.float32)

    def ids(self) -> np.ndarray:
        """The id of every vector, (N,) int64 or object array of strings."""
        return to_numpy(self.table()["id"])
