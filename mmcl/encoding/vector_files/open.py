"""Vectors on disk, whoever wrote them."""

from __future__ import annotations

from pathlib import Path

from mmcl.encoding.corpora import vectors
from mmcl.encoding.corpora.manifest import MANIFEST
from mmcl.encoding.vector_files.file_vectors import FileVectors
from mmcl.encoding.vector_files.layouts import open_files
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import as_path


def open_vectors(
    path: str | Path, *, partial: bool = False, column: str | None = None
) -> vectors.Vectors | FileVectors:
    """Open vectors on disk, to be read shard by shard.

    Args:
        path: a folder that ``mmcl encode`` or :class:`~mmcl.encoding.VectorWriter` wrote; a ``.npy`` file, its ids in
            ``NAME.ids.npy``, ``NAME.ids.txt`` or ``NAME.ids.parquet`` beside it; a ``.parquet`` file with a column
            of lists of numbers; a folder of such files; or clip-retrieval's folder with ``img_emb`` or ``text_emb``.
        partial: accept an encode that is not finished, of which the listed shards are read.
        column: of Parquet files, that of the vectors; by default ``embedding``, or the only one of lists of fractions.

    Raises:
        MmclError: there are no vectors, they are not finished, damaged, of different dimensions, or written by a newer
            mmcl.
    """
    folder = as_path(path)
    if not (folder / MANIFEST).exists():
        return open_files(folder, column)
    if column is not None:
        raise MmclError(f"{folder}: --column {column}: only Parquet files have columns; leave it out")
    return vectors.open_vectors(folder, partial=partial)
