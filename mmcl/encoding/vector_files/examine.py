"""What vectors on disk are, and whether they are sound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmcl.encoding.corpora.vectors import Vectors
from mmcl.encoding.vector_files.file_vectors import FileVectors
from mmcl.runtime.errors import MmclError
from mmcl.runtime.progress import progress

_ROWS = 16_384
_UNIT = 1e-3  # of float16, and of sums in other orders
_LISTED = 3


def info(vectors: Vectors | FileVectors) -> dict[str, Any]:
    """What is known of vectors without reading them, in values that JSON can hold."""
    files = vectors.folder.iterdir() if isinstance(vectors, Vectors) else (file.path for file in vectors.files)
    return {
        "path": str(vectors.folder),
        "vectors": len(vectors),
        "dim": vectors.dim,
        "dtype": str(vectors.dtype),
        "bytes": sum(path.stat().st_size for path in files if path.is_file()),
        "model": vectors.model,
        "encoder": vectors.encoder,
        "source": vectors.source,
        "skipped": vectors.skipped["count"],
        "complete": vectors.complete,
    }


def verify(vectors: Vectors | FileVectors, *, show_progress: bool | None = None) -> dict[str, Any]:
    """Read all vectors, their ids and other columns.

    Returns:
        ``vectors``; ``dim``; ``unit``, how many are of unit length; ``zero``, of length 0; ``duplicates``, how many
        have the id of an earlier one, and ``examples`` of such ids.

    Raises:
        MmclError: naming the file that is damaged, of another shape or dimension, or the first vector with NaN or
            infinity.
    """
    if isinstance(vectors, Vectors):
        vectors.verify()  # by the checksums of its files, which others do not have
    unit = zero = 0
    with progress("verify", len(vectors), "vectors", show_progress) as advance:
        for ids, shard in vectors.iter_shards():
            for start in range(0, len(shard), _ROWS):
                block = np.asarray(shard[start : start + _ROWS], np.float32)
                refuse_not_finite(block, ids[start : start + _ROWS])
                lengths = np.sqrt(np.einsum("nd,nd->n", block, block))
                unit += int((np.abs(lengths - 1) < _UNIT).sum())
                zero += int((lengths == 0).sum())
                advance(len(block))
    count, examples = repeated(vectors.table()["id"])
    return {
        "vectors": len(vectors),
        "dim": vectors.dim,
        "unit": unit,
        "zero": zero,
        "duplicates": count,
        "examples": examples,
    }


def refuse_not_finite(block: np.ndarray, ids: np.ndarray) -> None:
    """Raise ``MmclError``, which names its id, if one of (n, D) vectors holds NaN or infinity."""
    broken = np.flatnonzero(~np.isfinite(block).all(axis=1))
    if len(broken):
        more = f" ({len(broken):,} such in this block)" if len(broken) > 1 else ""
        name = ids[broken[:1]].tolist()[0]
        raise MmclError(f"the vector of id {name!r} holds NaN or infinity{more}; leave it out")


def repeated(ids: pa.ChunkedArray) -> tuple[int, list[Any]]:
    """How many ids have come before, and some of these."""
    distinct = pc.count_distinct(ids).as_py()
    if distinct == len(ids):
        return 0, []
    counts = pc.value_counts(ids)
    several = counts.filter(pc.greater(counts.field("counts"), 1))
    return len(ids) - distinct, several.field("values")[:_LISTED].to_pylist()
