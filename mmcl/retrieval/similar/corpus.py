"""Vectors of a corpus and the rows that they are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mmcl.data.rows import Rows
from mmcl.data.sources import open_source
from mmcl.data.sources.tar.rows import ShardRows
from mmcl.encoding import Columns, Encoder, FileVectors, Vectors, encode_source
from mmcl.runtime.errors import MmclError


def encoded(
    encoder: Encoder, rows: Rows | ShardRows, column: str | None, folder: Path, *, ids: str | None = None
) -> Vectors:
    """The vectors of a column, encoded into ``folder`` unless they are there; of ``image``, else ``text``, by default.

    Raises:
        MmclError: no such column, or the folder holds other vectors.
    """
    usual = [name for name in ("image", "text") if name in encoder.modalities and name in rows.column_names]
    if column is None and not usual:
        raise MmclError(
            f"{rows.name}: no column image or text; name one with --column; it has {', '.join(rows.column_names)}"
        )
    return encode_source(encoder, rows, Columns(column or usual[0], None, None, ids), folder)


def column_of_vectors(
    vectors: Vectors | FileVectors, column: str, rows: Rows | ShardRows | None = None, *, ids: str | None = None
) -> np.ndarray:
    """(N,) cells of a column for each vector: numbers, or an object array of texts.

    Args:
        vectors: N of them.
        column: its name; one that the vectors have beside them, or one of the rows.
        rows: where each vector's id is looked up; those that the vectors say they come from if absent.
        ids: the column of ids there; that which was encoded with if absent.

    Raises:
        MmclError: the rows cannot be opened, are tar shards, lack the column, or lack an id.
    """
    table = vectors.table()
    if rows is None and column in table.column_names:
        return np.asarray(table[column].to_numpy())
    rows = rows or open_source(_origin(vectors))
    if isinstance(rows, ShardRows):
        raise MmclError(f"{rows.name}: columns are looked up in tables, not in tar shards; name a table with --rows")
    rows.require([column])
    places = {name: row for row, name in reversed(list(enumerate(rows.ids(ids or vectors.source.get("id_column")))))}
    wanted = [str(name) for name in vectors.ids().tolist()]
    missing = next((name for name in wanted if name not in places), None)
    if missing is not None:
        raise MmclError(f"{rows.name}: no row has the id '{missing}' of a vector; name the rows with --rows")
    found: list[Any] = rows.select([places[name] for name in wanted]).column(column)
    if rows.holds_numbers(column):
        return np.array([np.nan if value is None else value for value in found], dtype=np.float64)
    cells = np.empty(len(found), dtype=object)
    cells[:] = [None if value is None else str(value) for value in found]
    return cells


def _origin(vectors: Vectors | FileVectors) -> str:
    name = vectors.source.get("name")
    if not name:
        raise MmclError(f"{vectors.folder}: does not say which rows it is of; name them with --rows")
    return str(name)
