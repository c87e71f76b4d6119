"""Vectors in a column of Parquet files."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmcl.runtime.errors import MmclError, first_line, nearest

COLUMNS = ("embedding", "embeddings", "vector", "vectors")
"""Names by which a column of vectors is found among several; without one of these, the only one of its kind is."""
DESCRIPTION = b"mmcl"
"""Key of a Parquet file's metadata under which stands what is known about the vectors."""
_BUFFER = 2**20

log = logging.getLogger("mmcl")


class ParquetVectors:
    """The vectors in a column of lists of numbers.

    Args:
        path: of the file.
        column: of the vectors; found by its name or kind if None.

    Attributes:
        rows: N.
        dim: D.
        dtype: of the numbers.

    Raises:
        MmclError: the file is damaged, or has no such column, or several.
    """

    def __init__(self, path: Path, column: str | None = None) -> None:
        self.path = path
        with opened(path) as file:
            schema = file.schema_arrow
            self.column = _column(path, schema, column)
            self.rows: int = file.metadata.num_rows
            self._groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            self.description = (schema.metadata or {}).get(DESCRIPTION)
            kind = schema.field(self.column).type
            self.dtype = np.dtype(kind.value_type.to_pandas_dtype())
            self.dim = kind.list_size if pa.types.is_fixed_size_list(kind) else self._first_length(file)
        if self.dim < 1:
            raise MmclError(f"{path}: column '{self.column}' holds empty lists; vectors are lists of numbers")

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """(n, D) arrays of at most ``rows`` rows, in order. Raises ``MmclError`` for a row without a vector, or with
        one of another length."""
        start = 0
        with opened(self.path) as file:
            for batch in file.iter_batches(rows, columns=[self.column]):
                yield self._array(batch.column(0), start)
                start += len(batch)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of these rows, (n, D) float32; row groups without any are not read."""
        result = np.empty((len(rows), self.dim), np.float32)
        ends = np.cumsum(self._groups)
        with opened(self.path) as file:
            for group in np.unique(np.searchsorted(ends, rows, side="right")).tolist():
                start = int(ends[group]) - self._groups[group]
                for batch in file.iter_batches(row_groups=[group], columns=[self.column]):
                    here = (rows >= start) & (rows < start + len(batch))
                    result[here] = self._array(batch.column(0), start)[rows[here] - start]
                    start += len(batch)
        return result

    def table(self, only: Collection[str] | None = None) -> pa.Table:
        """The other columns, or those of them that are named."""
        return ParquetColumns(self.path, self.column).table(only)

    def _first_length(self, file: pq.ParquetFile) -> int:
        for batch in file.iter_batches(1, columns=[self.column]):
            length = pc.list_value_length(batch.column(0))[0].as_py()
            if length is None:
                raise MmclError(f"{self.path}: row 0 has no vector in column '{self.column}'; leave such rows out")
            return length
        raise MmclError(f"{self.path}: has no rows, so that the dimension of its vectors is not known; leave it out")

    def _array(self, lists: pa.Array, start: int) -> np.ndarray:
        lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero(lengths != self.dim)
        if len(wrong):
            row = int(wrong[0])
            what = (
                f"a vector of dimension {lengths[row]}, the first one has {self.dim}," if lengths[row] else "no vector"
            )
            raise MmclError(f"{self.path}: row {start + row} has {what} in column '{self.column}'")
        values = lists.flatten()
        if values.null_count:
            row = int(pc.index(values.is_null(), True).as_py()) // self.dim
            raise MmclError(f"{self.path}: the vector of row {start + row} in column '{self.column}' lacks components")
        return values.to_numpy(zero_copy_only=False).reshape(-1, self.dim)


class ParquetColumns:
    """What stands beside vectors in a Parquet file, or in one of its own: all columns but those of vectors.

    Args:
        path: of the file.
        vectors: its column of vectors, if it has one.
    """

    def __init__(self, path: Path, vectors: str | None = None) -> None:
        self.path = path
        with opened(path) as file:
            schema = file.schema_arrow
        self.description = (schema.metadata or {}).get(DESCRIPTION)
        self._names = [field.name for field in schema if field.name != vectors and not _is_vectors(field.type)]
        left_out = set(schema.names) - {*self._names, vectors}
        if left_out:
            log.info("%s: %s: other vectors, which are not read", path, ", ".join(sorted(left_out)))

    def table(self, only: Collection[str] | None = None) -> pa.Table:
        """All rows of these columns, or of those of them that are named."""
        names = [name for name in self._names if only is None or name in only]
        with opened(self.path) as file:
            table = file.read(columns=names).replace_schema_metadata(None)
            table.validate(full=True)  # bytes that are no UTF-8, among others
            return table


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file, whose errors within the block name it."""
    try:
        with pq.ParquetFile(path, buffer_size=_BUFFER) as file:
            yield file
    except FileNotFoundError:
        raise MmclError(f"{path}: missing") from None
    except (pa.ArrowException, OSError) as error:
        raise MmclError(f"{path}: cannot be read as Parquet ({first_line(error)})") from None


def _is_vectors(kind: pa.DataType) -> bool:
    """Whether a column holds lists of fractions."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists and pa.types.is_floating(kind.value_type)


def _column(path: Path, schema: pa.Schema, asked: str | None) -> str:
    found = [field.name for field in schema if _is_vectors(field.type)]
    if asked is not None:
        if asked not in schema.names:
            raise MmclError(f"{path}: has no column '{asked}'; {nearest(asked, schema.names)}")
        kind = schema.field(asked).type
        if asked not in found and not (pa.types.is_fixed_size_list(kind) and pa.types.is_integer(kind.value_type)):
            raise MmclError(f"{path}: column '{asked}' holds {kind}; vectors are lists of numbers")
        return asked
    if named := [name for name in COLUMNS if name in found]:
        return named[0]
    if not found:
        raise MmclError(f"{path}: no column holds lists of numbers; it has {', '.join(schema.names)}")
    if len(found) > 1:
        raise MmclError(f"{path}: several columns hold vectors: {', '.join(found)}; name one with --column")
    return found[0]
