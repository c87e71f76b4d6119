"""A Parquet or JSON-lines file that is written block by block, and there completely or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import atomic_file

SUFFIXES = (".parquet", ".jsonl")


class TableFile(Protocol):
    """What takes tables of the same columns, one after the other."""

    def write(self, table: pa.Table) -> None:
        """Append rows."""


class _Parquet:
    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._path, self._stack = path, stack
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        if self._writer is None:
            self._writer = self._stack.enter_context(pq.ParquetWriter(self._path, table.schema, compression="zstd"))
        self._writer.write_table(table.cast(self._writer.schema))


class _JsonLines:
    def __init__(self, file: IO[str], path: Path) -> None:
        self._file, self._path = file, path

    def write(self, table: pa.Table) -> None:
        binary = [field.name for field in table.schema if pa.types.is_binary(field.type)]
        if binary:
            raise MmclError(f"{self._path}: column '{binary[0]}' holds images as bytes; name a .parquet file")
        for row in table.to_pylist():
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def table_file(path: Path) -> Iterator[TableFile]:
    """Open a file to write, which has its name once the block ends without an error.

    Raises:
        MmclError: its name ends neither with ``.parquet`` nor with ``.jsonl``.
    """
    check_suffix(path)
    with atomic_file(path) as beside, ExitStack() as stack:
        if path.suffix == ".jsonl":
            yield _JsonLines(stack.enter_context(beside.open("w", encoding="utf-8")), path)
        else:
            yield _Parquet(beside, stack)


def check_suffix(path: Path) -> None:
    """Raise ``MmclError`` unless the name ends with one of ``SUFFIXES``."""
    if path.suffix not in SUFFIXES:
        raise MmclError(f"{path}: what is written is Parquet or JSON lines; name a .parquet or .jsonl file")
