"""Vectors written as other programs read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmcl.encoding.corpora.vectors import Vectors
from mmcl.encoding.vector_files.examine import refuse_not_finite
from mmcl.encoding.vector_files.file_vectors import FileVectors
from mmcl.encoding.vector_files.parquet import DESCRIPTION
from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.files import as_path, atomic_file, atomic_folder
from mmcl.runtime.progress import progress

Format = Literal["npy", "parquet", "clip-retrieval"]
FILE_ROWS = 1_000_000
"""Vectors in each file of a folder."""
_ROWS = 16_384


def export(
    vectors: Vectors | FileVectors,
    out: str | Path,
    to: Format,
    *,
    column: str = "embedding",
    file_rows: int = FILE_ROWS,
    show_progress: bool | None = None,
) -> None:
    """Write vectors, block by block, in a format of others; completely or not at all.

    :func:`mmcl.encoding.open_vectors` reads them again, with ids, other columns, the model and its fingerprint.

    Args:
        vectors: to write.
        out: a file ending in ``.npy`` or ``.parquet``, or a folder for files of ``file_rows`` vectors; must not exist.
        to: ``npy``: arrays, ids and other columns in ``NAME.ids.parquet`` beside each; ``parquet``: ids, other columns
            and vectors, float32, in a column; ``clip-retrieval``: ``img_emb`` or, of texts, ``text_emb``, and
            ``metadata``.
        column: of Parquet files, that of the vectors.
        file_rows: vectors in each file of a folder.
        show_progress: a bar on stderr; None shows it on a terminal.

    Raises:
        MmclError: ``out`` exists, or ends as another format does; there are no vectors, or NaN among them.
        OSError: the disk is full.
    """
    if to not in get_args(Format):
        raise MmclError(f"--to {to}: no such format; {nearest(str(to), get_args(Format))}")
    out = as_path(out)
    if out.exists():
        raise MmclError(f"{out}: exists; delete it or choose another --out")
    if out.suffix in (".npy", ".parquet") and out.suffix != f".{to}":
        raise MmclError(f"{out}: a name for {out.suffix[1:]}, and --to says {to}; choose another --out")
    if not len(vectors):
        raise MmclError(f"{vectors.folder}: holds no vectors to export")
    table = _columns(vectors, to)
    if to == "parquet" and column in table.column_names:
        raise MmclError(f"{vectors.folder}: has a column '{column}'; name that of the vectors otherwise with --column")
    with progress("export", len(vectors), "vectors", show_progress) as advance:
        stream = _Stream(vectors, advance)
        if out.suffix == f".{to}":
            _write(out, stream, table, column)
            return
        last = len(str(-(-len(table) // file_rows) - 1))  # digits of the last file's number
        with atomic_folder(out) as folder:
            for number, start in enumerate(range(0, len(table), file_rows)):
                path = folder / _name(to, vectors.source, f"{number:0{last}d}")
                _write(path, stream, table.slice(start, file_rows), column)


class _Stream:
    """Blocks of vectors, cut where files end."""

    def __init__(self, vectors: Vectors | FileVectors, advance: Callable[[int], Any]) -> None:
        self.dim, self._advance = vectors.dim, advance
        self.dtype = np.dtype(np.float16 if vectors.dtype == np.float16 else np.float32)
        self._shards = vectors.iter_shards()
        self._ids, self._block = np.empty(0), np.empty((0, vectors.dim), self.dtype)

    def take(self, rows: int) -> Iterator[np.ndarray]:
        """The next ``rows`` vectors, as arrays (n, D)."""
        while rows:
            if not len(self._block):
                self._ids, self._block = next(self._shards)
            block, ids = self._block[: min(rows, _ROWS)], self._ids
            refuse_not_finite(block, ids)
            yield block
            self._ids, self._block = ids[len(block) :], self._block[len(block) :]
            rows -= len(block)
            self._advance(len(block))


def _columns(vectors: Vectors | FileVectors, to: Format) -> pa.Table:
    """Ids and other columns, and in the metadata of the schema what is known of the model."""
    table = vectors.table()
    if to == "clip-retrieval":
        shown = table["label"] if "label" in table.column_names else table["id"].cast(pa.large_string())
        name = "caption" if _of_texts(vectors.source) or vectors.source.get("label_column") else "image_path"
        if name not in table.column_names:
            table = table.append_column(name, shown)
    known = {"model": vectors.model, "encoder": vectors.encoder, "source": vectors.source}
    return table.replace_schema_metadata({DESCRIPTION: json.dumps(known)})


def _of_texts(source: dict[str, Any]) -> bool:
    return source.get("modality") == "text"


def _name(to: Format, source: dict[str, Any], number: str) -> str:
    if to == "clip-retrieval":
        folder = "text_emb" if _of_texts(source) else "img_emb"
        return f"{folder}/{folder}_{number}.npy"
    return f"part-{number}.{to}"


def _write(path: Path, stream: _Stream, table: pa.Table, column: str) -> None:
    """The next vectors, of the rows of ``table``."""
    if path.suffix == ".parquet":
        with atomic_file(path) as beside:
            _write_parquet(beside, stream, table, column)
        return
    if path.parent.name in ("img_emb", "text_emb"):
        ids = path.parent.parent / "metadata" / f"metadata{path.stem.removeprefix(path.parent.name)}.parquet"
    else:
        ids = path.with_suffix(".ids.parquet")
    with atomic_file(path) as beside, atomic_file(ids) as beside_ids:
        with beside.open("wb") as file:
            header = {"descr": stream.dtype.str, "fortran_order": False, "shape": (len(table), stream.dim)}
            np.lib.format.write_array_header_1_0(file, header)
            for block in stream.take(len(table)):
                file.write(np.ascontiguousarray(block, stream.dtype).data)
        pq.write_table(table, beside_ids, compression="zstd")


def _write_parquet(path: Path, stream: _Stream, table: pa.Table, column: str) -> None:
    """A row group a block."""
    kind = pa.list_(pa.float32(), stream.dim)
    schema = table.schema.append(pa.field(column, kind))
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=table.column_names) as file:
        start = 0
        for block in stream.take(len(table)):
            values = pa.FixedSizeListArray.from_arrays(block.astype(np.float32).ravel(), type=kind)
            rows = table.slice(start, len(block)).append_column(schema.field(column), values)
            file.write_table(rows)
            start += len(block)
