"""Vectors in ``.npy`` files, with a file of their ids beside, or without one."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TypeGuard

import numpy as np
import pyarrow as pa

from mmcl.encoding.vector_files.parquet import ParquetColumns
from mmcl.runtime.errors import MmclError, first_line

IDS = (".ids.parquet", ".ids.npy", ".ids.txt", ".parquet")
"""What the file beside ``NAME.npy`` is called that holds its ids: ``NAME.ids.txt``."""
DTYPES = ("float32", "float16", "float64", "int8")


class NpyFile:
    """An (N, D) array on disk, memory-mapped.

    Args:
        path: of the array.
        columns: the file with its N ids: ``.parquet`` with other columns too, ``.npy``, or ``.txt`` with one a line.

    Attributes:
        rows: N.
        dim: D.
        dtype: of the numbers on disk: float32, float16, float64 or int8.

    Raises:
        MmclError: the file is damaged, holds something else, or Python objects, which are never loaded.
    """

    def __init__(self, path: Path, columns: Path | None = None) -> None:
        self.path, self.columns = path, columns
        array = self._array()
        if array.ndim != 2:
            raise MmclError(f"{path}: holds an array of shape {array.shape}; vectors are (N, D)")
        if array.dtype.name not in DTYPES:
            raise MmclError(f"{path}: holds {array.dtype}; vectors are {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
        self.rows, self.dim = array.shape
        self.dtype = array.dtype

    @property
    def description(self) -> bytes | None:
        """What :mod:`mmcl.encoding.vector_files.export` wrote about the vectors, as JSON."""
        return ParquetColumns(self.columns).description if _is_parquet(self.columns) else None

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """(n, D) arrays of at most ``rows`` rows, in order."""
        array = self._array()
        for start in range(0, self.rows, rows):
            yield array[start : start + rows]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of these rows, (n, D) float32."""
        return self._array()[rows].astype(np.float32)

    def table(self, only: Collection[str] | None = None) -> pa.Table | None:
        """The columns beside the vectors, or those of them that are named; None without such a file. Raises
        ``MmclError`` if it is of other rows."""
        if self.columns is None:
            return None
        if _is_parquet(self.columns):
            table = ParquetColumns(self.columns).table(only)
        else:
            table = pa.table({"id": _ids(self.columns)})
        if len(table) != self.rows:
            raise MmclError(f"{self.columns}: holds {len(table):,} ids, {self.path.name} {self.rows:,} vectors")
        return table

    def _array(self) -> np.ndarray:
        return _load(self.path)


def _is_parquet(path: Path | None) -> TypeGuard[Path]:
    return path is not None and path.suffix == ".parquet"


def _ids(path: Path) -> pa.Array:
    if path.suffix == ".txt":
        try:
            return pa.array(path.read_text(encoding="utf-8").splitlines(), pa.large_string())
        except UnicodeDecodeError as error:
            raise MmclError(f"{path}: is no UTF-8 text ({error})") from None
    ids = _load(path)
    if ids.ndim != 1 or ids.dtype.kind not in "iuU":
        raise MmclError(f"{path}: holds {ids.dtype} of shape {ids.shape}; ids are (N,) integers or strings")
    return pa.array(ids.tolist())


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise MmclError(f"{path}: missing") from None
    except Exception as error:  # what a damaged header raises is of many kinds
        if "bject" in str(error):  # arrays of objects
            raise MmclError(f"{path}: holds Python objects, which are never loaded; save numbers") from None
        raise MmclError(f"{path}: cannot be read as .npy ({first_line(error)})") from None
