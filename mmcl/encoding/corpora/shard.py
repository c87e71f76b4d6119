"""The files of one shard, written block by block."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from mmcl.encoding.corpora.manifest import Dtype
from mmcl.encoding.corpora.stored import file_record, write_table
from mmcl.encoding.quantize import scaled_int8
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import atomic_file


class ShardFiles:
    """The files of one shard, which take their names when it is closed. Memory holds its ids, not its vectors.

    Args:
        folder: where to.
        name: what the files begin with.
        dim: components of a vector.
        dtype: of the vectors on disk; ``int8`` has a scale for each beside it.
    """

    def __init__(self, folder: Path, name: str, dim: int, dtype: Dtype) -> None:
        self.name, self.rows = name, 0
        self._folder, self._dim, self._dtype = folder, dim, dtype
        self._tables: list[pa.Table] = []
        self._open: dict[str, tuple[BinaryIO, np.ndarray]] = {}  # with an array of the dtype and width
        self._stack = ExitStack()

    def append(self, vectors: np.ndarray, table: pa.Table) -> None:
        """Add a block.

        Args:
            vectors: (n, D).
            table: their ids, labels and other columns.

        Raises:
            MmclError: a vector of another width, or with what the dtype cannot hold.
            OSError: the disk is full.
        """
        for kind, part in storable(vectors, table, self._dim, self._dtype, self._folder).items():
            if kind not in self._open:
                path = self._stack.enter_context(atomic_file(self._folder / f"{self.name}.{kind}"))
                file = self._stack.enter_context(path.open("wb"))
                file.write(_header(part[:0]))
                self._open[kind] = file, part[:0]
            self._open[kind][0].write(np.ascontiguousarray(part).data)
        self._tables.append(table)
        self.rows += len(vectors)

    def close(self) -> dict[str, dict[str, Any]]:
        """Give the files their names, and return the record of each; none without vectors.

        Raises:
            OSError: the disk is full; then nothing of it is left.
        """
        if not self.rows:
            self.discard()
            return {}
        names = [f"{self.name}.{kind}" for kind in (*self._open, "ids.parquet")]
        try:
            with self._stack:
                for file, empty in self._open.values():
                    file.seek(0)  # numpy leaves space for the number of rows to grow
                    file.write(_header(empty, self.rows))
                    file.flush()
                beside = self._stack.enter_context(atomic_file(self._folder / names[-1]))
                write_table(beside, pa.concat_tables(self._tables).combine_chunks())
            return {name: file_record(self._folder / name) for name in names}
        except OSError:
            for name in names:
                (self._folder / name).unlink(missing_ok=True)
            raise

    def discard(self) -> None:
        """Leave nothing of it."""
        error = _DiscardedError()
        with suppress(OSError):  # of a full disk, to which a file had more to write
            self._stack.__exit__(_DiscardedError, error, None)


class _DiscardedError(Exception):
    pass


def storable(vectors: np.ndarray, table: pa.Table, dim: int, dtype: Dtype, folder: Path | str) -> dict[str, np.ndarray]:
    """Vectors as they are on disk, by the kind of file.

    Args:
        vectors: (n, D).
        table: their ids.
        dim: D, as it has to be.
        dtype: on disk.
        folder: for messages.

    Raises:
        MmclError: they are of another width, or hold what the dtype cannot.
    """
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise MmclError(f"{folder}: vectors of shape {vectors.shape}, expected (n, {dim})")
    with np.errstate(over="ignore"):
        block = vectors.astype(np.float32 if dtype == "int8" else dtype, copy=False)
    broken = np.flatnonzero(~np.isfinite(block).all(axis=1))
    if len(broken):
        raise MmclError(
            f"the vector of id {table['id'][int(broken[0])].as_py()!r} holds NaN, infinity, or more than "
            f"{dtype} can ({len(broken):,} such in this block)"
        )
    if dtype != "int8":
        return {"npy": block}
    codes, scales = scaled_int8(block)
    return {"npy": codes, "scales.npy": scales}


def with_columns(table: pa.Table, columns: Mapping[str, Sequence[int | None] | pa.ChunkedArray]) -> pa.Table:
    """The table with other columns: of whole numbers, or what Arrow holds."""
    for name, values in columns.items():
        given = isinstance(values, pa.ChunkedArray)
        table = table.append_column(name, values if given else pa.array(values, pa.int64()))
    return table


def _header(array: np.ndarray, rows: int = 0) -> bytes:
    """Of an ``.npy`` file of so many rows like those of ``array``; it has the same length for any number."""
    buffer = io.BytesIO()
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": (rows, *array.shape[1:])}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()
