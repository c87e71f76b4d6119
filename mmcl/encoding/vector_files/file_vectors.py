"""Vectors in one or several files, as one sequence."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from pydantic import Field

from mmcl.encoding.corpora.array_access import ArrayAccess
from mmcl.encoding.corpora.stored import CorpusFingerprint, Stored, id_table, to_numpy, validated
from mmcl.runtime.errors import MmclError, first_line

BLOCK_BYTES = 64 * 2**20
"""Of vectors that are read at a time."""
_IDS = ("id", "_id", "image_path")  # the last, what clip-retrieval keeps
_LABELS = ("label", "caption", "text", "title")


class VectorFile(Protocol):
    """A file of ``rows`` vectors of ``dim`` components, with other columns beside them, perhaps in another file."""

    path: Path
    rows: int
    dim: int
    dtype: np.dtype

    @property
    def description(self) -> bytes | None: ...
    def blocks(self, rows: int) -> Iterator[np.ndarray]: ...
    def take(self, rows: np.ndarray) -> np.ndarray: ...
    def table(self, only: Collection[str] | None = None) -> pa.Table | None: ...


class Description(Stored):
    """What is known about vectors: the model that made them, its fingerprint, and what they come from."""

    model: str | None = None
    encoder: CorpusFingerprint | None = None
    source: dict[str, Any] = Field(default_factory=dict)


class FileVectors(ArrayAccess):
    """Vectors that other programs have written, read block by block. Made by :func:`mmcl.encoding.open_vectors`.

    Attributes:
        folder: the path that was opened.
        files: that hold them.
        dim: components of a vector.
        dtype: of the blocks: ``float16`` if all files hold that, else ``float32``.
        model, encoder, source: as of :class:`mmcl.encoding.Vectors`, where the files say.
        skipped: nothing.
        complete: True.

    Raises:
        MmclError: the files' vectors are of different dimensions, or there are none.
    """

    complete = True

    def __init__(self, path: Path, files: Sequence[VectorFile]) -> None:
        self.folder, self.files = path, list(files)
        first = self.files[0]
        for file in self.files:
            if file.dim != first.dim:
                raise MmclError(
                    f"{file.path}: vectors of dimension {file.dim}, those of {first.path.name} of {first.dim}"
                )
        self.dim = first.dim
        halves = all(file.dtype == np.float16 for file in self.files)
        self.dtype = np.dtype(np.float16 if halves else np.float32)
        known = _described(first)
        self.model, self.source = known.model, known.source
        self.encoder: dict[str, str] | None = None if known.encoder is None else known.encoder.model_dump()
        self.skipped: dict[str, Any] = {"count": 0, "rows": []}
        self._ends = np.cumsum([file.rows for file in self.files], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __repr__(self) -> str:
        return f"FileVectors({str(self.folder)!r}, {len(self):,} × {self.dim} {self.dtype})"

    def table(self) -> pa.Table:
        """An Arrow table of N rows: ``id``, perhaps ``label``, and the other columns beside the vectors.

        Ids are the column ``id``, ``_id`` or ``image_path``, else positions 0 … N-1; labels the column ``label``,
        ``caption``, ``text`` or ``title``.

        Raises:
            MmclError: the files have ids of different kinds, or some have none.
        """
        tables = [self._table(number) for number in range(len(self.files))]
        try:
            return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        except pa.ArrowException as error:
            raise MmclError(f"{self.folder}: its files have columns of different types ({first_line(error)})") from None

    def iter_shards(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids (n,) and vectors (n, D), float32 or float16, of blocks of at most 64 MiB, in order.

        Raises:
            MmclError: naming the file that is damaged, and the row without a vector, or with one of another dimension.
        """
        rows = max(1, BLOCK_BYTES // (4 * self.dim))
        for number, file in enumerate(self.files):
            ids, start = to_numpy(self._ids(number, file.table(_IDS))), 0
            for block in file.blocks(rows):
                yield ids[start : start + len(block)], block.astype(self.dtype, copy=False)
                start += len(block)

    def take(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The vectors at these positions, in this order, as float32 (n, D).

        Raises:
            IndexError: a position outside [0, N).
            MmclError: naming the file that is damaged.
        """
        positions = np.asarray(indices, dtype=np.int64)
        if positions.size and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(
                f"positions {positions.min()} to {positions.max()} asked for, there are {len(self)} vectors"
            )
        result = np.empty((len(positions), self.dim), np.float32)
        numbers = np.searchsorted(self._ends, positions, side="right")
        for number in np.unique(numbers).tolist():
            here, file = numbers == number, self.files[number]
            result[here] = file.take(positions[here] - self._start(number))
        return result

    def _start(self, number: int) -> int:
        return int(self._ends[number]) - self.files[number].rows

    def _ids(self, number: int, columns: pa.Table | None) -> pa.ChunkedArray:
        """The ids of a file: int64 or large strings."""
        file = self.files[number]
        name = _first(_IDS, columns)
        ids = np.arange(self._start(number), self._ends[number]) if columns is None or name is None else columns[name]
        try:
            return id_table(ids, file.rows)["id"]
        except MmclError as error:
            raise MmclError(f"{file.path}: {error}") from None

    def _table(self, number: int) -> pa.Table:
        """The columns of a file: ``id``, ``label`` if there is one, and the others."""
        columns = self.files[number].table()
        table = pa.table({"id": self._ids(number, columns)})
        if columns is None:
            return table
        if (shown := _first(_LABELS, columns)) and not pa.types.is_nested(columns[shown].type):
            table = table.append_column("label", columns[shown].cast(pa.large_string()))
        for name in columns.column_names:
            if name not in ("id", *table.column_names):
                table = table.append_column(name, columns[name])
        return table


def _first(names: Sequence[str], columns: pa.Table | None) -> str | None:
    """The first of these that is a column."""
    return next((name for name in names if columns is not None and name in columns.column_names), None)


def _described(file: VectorFile) -> Description:
    if (text := file.description) is None:
        return Description()
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise MmclError(f"{file.path}: what is known of the model of its vectors is damaged; export them again")
    return validated(Description, content, file.path, "export the vectors again")
