"""A FAISS index on disk: vectors, ids and metadata, held-out queries, and ``index.json``, which describes it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Annotated, Any

import faiss
import numpy as np
from pydantic import Field

from mmcl.encoding.corpora.stored import (
    CorpusFingerprint,
    FileRecord,
    Stored,
    check_file,
    file_record,
    found_model,
    near,
    read_description,
    read_table,
    validated,
    write_description,
    write_table,
)
from mmcl.losses.logits.similarity import Similarity
from mmcl.retrieval.faiss import specs
from mmcl.retrieval.faiss.held_out import HeldOut
from mmcl.retrieval.index import INDEX_FILE
from mmcl.retrieval.metadata import Metadata
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import as_path

_FORMAT, _VERSION = "mmcl index", 2
REBUILD = "build it with: mmcl index build VECTORS --out INDEX"
_VECTORS, _TABLE, _HELD_OUT, _REMOVED = "index.faiss", "ids.parquet", "held_out.safetensors", "removed.npy"

_Count = Annotated[int, Field(ge=0)]


class _About(Stored):
    engine: str = "faiss"
    spec: str
    reason: str
    similarity: Similarity
    dim: Annotated[int, Field(ge=1)]
    count: Annotated[int, Field(ge=1)]
    removed: _Count = 0
    count_when_built: _Count | None = None
    model: str | None
    near: str | None = None
    encoder: CorpusFingerprint | None = None
    trained_on: int
    nprobe: Annotated[int, Field(ge=1)] | None = None  # the effort in format 1
    effort: Annotated[int, Field(ge=1)] | None = None
    recall: float | None
    target: float = 0.95
    curve: list[Any] = Field(default_factory=list)
    files: dict[str, FileRecord]


def write(folder: Path, index: Any, metadata: Metadata, held: HeldOut | None, about: dict[str, Any]) -> None:
    """Write the files of an index into a new folder.

    Raises:
        OSError: the disk is full or refuses.
    """
    write_table(folder / _TABLE, metadata.table)
    try:
        faiss.write_index(index, str(folder / _VECTORS))
    except RuntimeError as error:
        if "No space left" in str(error):
            raise OSError(errno.ENOSPC, "No space left on device", str(folder)) from None
        raise
    if held is not None:
        held.save(folder / _HELD_OUT)
    if metadata.removed is not None:
        np.save(folder / _REMOVED, np.flatnonzero(metadata.removed))
    names = (_VECTORS, _TABLE, _HELD_OUT, _REMOVED)
    files = {name: file_record(folder / name) for name in names if (folder / name).exists()}
    beside = {"near": near(folder, about["model"]), "files": files}
    write_description(folder / INDEX_FILE, _FORMAT, _VERSION, about | beside)


def read(folder: str | Path, *, verify: bool) -> tuple[Any, Metadata, HeldOut | None, dict[str, Any]]:
    """What :func:`write` wrote.

    Args:
        folder: where.
        verify: compare the files' SHA-256; else their sizes alone.

    Raises:
        MmclError: not an index, a file missing or damaged, or written by a newer mmcl.
    """
    folder = as_path(folder)
    path = folder / INDEX_FILE
    about = validated(_About, read_description(path, _FORMAT, _VERSION, REBUILD), path, REBUILD).model_dump()
    files, nearby, cells = about.pop("files"), about.pop("near"), about.pop("nprobe")
    about["effort"] = about["effort"] or cells
    for name in {_VECTORS: None, _TABLE: None} | files:
        if name not in files:
            raise MmclError(f"{path}: damaged, '{name}' is not among its files; {REBUILD}")
        check_file(folder / name, files[name], checksum=verify, cure=REBUILD)
    table = read_table(folder / _TABLE)
    index = _read_vectors(folder / _VECTORS)
    removed = _read_removed(folder / _REMOVED, len(table)) if _REMOVED in files else None
    metadata = Metadata(table, removed)
    together = index.ntotal == len(table) and index.d == about["dim"] and metadata.count == about["count"]
    if not together or index.metric_type != specs.METRICS[about["similarity"]]:
        raise MmclError(f"{folder}: its files do not belong together; {REBUILD}")
    if specs.inverted_file(index) is not None and about["effort"] is None:
        raise MmclError(f"{path}: damaged, 'effort' is missing; {REBUILD}")
    held = None
    if _HELD_OUT in files:
        held = HeldOut.load(folder / _HELD_OUT, about["similarity"], about["dim"], metadata.count, REBUILD)
    about["model"] = found_model(folder, about["model"], nearby)
    return index, metadata, held, about


def _read_vectors(path: Path) -> Any:
    try:
        return faiss.read_index(str(path))
    except MemoryError:
        raise MmclError(f"{path}: damaged, or larger than the memory there is; {REBUILD}") from None
    except Exception as error:  # RuntimeError, and what the wrapper makes of other C++ exceptions
        raise MmclError(f"{path}: damaged ({specs.reason(error):.200}); {REBUILD}") from None


def _read_removed(path: Path, places: int) -> np.ndarray:
    try:
        positions = np.load(path, allow_pickle=False)
        removed = np.zeros(places, bool)
        removed[positions] = True
    except Exception as error:  # what a damaged file raises is of many kinds
        raise MmclError(f"{path}: damaged ({str(error) or type(error).__name__:.200}); {REBUILD}") from None
    return removed
