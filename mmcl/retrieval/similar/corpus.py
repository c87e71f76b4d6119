"""Vectors of a corpus and the rows that they are of."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from mmcl.data.rows import Rows
from mmcl.data.sources import open_source
from mmcl.data.sources.tar.rows import ShardRows
from mmcl.encoding import Columns, Encoder, FileVectors, Vectors, encode_source
from mmcl.encoding.corpora.opening import usual_column
from mmcl.formats.threshold import read_threshold
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")
USUAL_THRESHOLD = 0.95
"""Cosine of duplicates, where nothing was measured."""


def encoded(
    encoder: Encoder, rows: Rows | ShardRows, column: str | None, folder: Path, *, ids: str | None = None
) -> Vectors:
    """The vectors of a column, encoded into ``folder`` unless they are there; of ``image``, else ``text``, by default.

    Raises:
        MmclError: no such column, or the folder holds other vectors.
    """
    return encode_source(encoder, rows, Columns(column or usual_column(encoder, rows), None, None, ids), folder)


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


def match_threshold(vectors: Vectors | FileVectors, precision: float | None = None) -> float:
    """The cosine above which two of the vectors are the same, as :func:`mmcl.evaluation.threshold` measured it for
    their model and keeps it in its folder.

    Args:
        vectors: which name their model.
        precision: at which; the highest that was measured if absent, and 0.95 as a cosine, with a line in the log, if
            there is none.

    Raises:
        MmclError: a precision is asked for, and there is no threshold of it, or it is of other weights.
    """
    try:
        kind = vectors.source.get("modality", "text")
        if vectors.model is None:
            raise MmclError(f"{vectors.folder}: does not say which model its vectors are of; name a --threshold")
        kept = read_threshold(vectors.model, f"{kind}-{kind}")
        if vectors.encoder is not None and kept.encoder["weights"] != vectors.encoder["weights"]:
            raise MmclError(f"{kept.folder}: its threshold is of other weights than the vectors; measure it anew")
        there = [cut["asked"] for cut in kept.cuts if cut["asked"] is not None and cut["threshold"] is not None]
        asked = max(there, default=None) if precision is None else precision
        found = kept.above(asked)
    except MmclError as error:
        if precision is not None:
            raise
        log.info("threshold: %s, the usual one: %s", USUAL_THRESHOLD, error)
        return USUAL_THRESHOLD
    log.info("threshold: %.4f, as measured for %s", found, "the best F1" if asked is None else f"precision {asked:g}")
    return found


def _origin(vectors: Vectors | FileVectors) -> str:
    name = vectors.source.get("name")
    if not name:
        raise MmclError(f"{vectors.folder}: does not say which rows it is of; name them with --rows")
    return str(name)
