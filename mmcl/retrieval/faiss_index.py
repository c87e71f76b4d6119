"""An index over FAISS: built from memory or from disk, searched, saved and loaded."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import Field

from mmcl.encoding.corpora.stored import (
    FileRecord,
    Fingerprint,
    Stored,
    check_file,
    file_record,
    found_model,
    id_table,
    near,
    read_description,
    read_table,
    to_numpy,
    validated,
    write_description,
    write_table,
)
from mmcl.losses.logits.similarity import Similarity
from mmcl.retrieval import specs
from mmcl.retrieval.index import VectorShards
from mmcl.retrieval.inputs import as_shards, float32_array, prepared
from mmcl.runtime.device import ready_after_fork
from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.files import as_path, atomic_folder, folder_to_write
from mmcl.runtime.progress import log_progress, progress

_FORMAT, _VERSION = "mmcl index", 1
_REBUILD = "build it with: mmcl index build VECTORS --out INDEX"
_BLOCK = 65_536
_TIED_CELLS = 2**24

if hasattr(os, "register_at_fork"):  # FAISS, as torch, would wait for ever for threads that are not forked
    os.register_at_fork(after_in_child=lambda: faiss.omp_set_num_threads(1))


class _About(Stored):
    spec: str
    reason: str
    similarity: Similarity
    dim: Annotated[int, Field(ge=1)]
    count: Annotated[int, Field(ge=1)]
    model: str | None
    near: str | None = None
    encoder: Fingerprint | None = None
    trained_on: int
    nprobe: Annotated[int, Field(ge=1)] | None
    recall: float | None
    files: dict[str, FileRecord]


class Index:
    """Vectors that answer which of them are most similar to a query. Made by :meth:`build` or :meth:`load`.

    Attributes:
        dim: components of a vector.
        similarity: ``cosine``, ``dot`` or ``euclidean``.
        spec: the FAISS factory string of the index.
        model: name or folder of the encoder whose vectors these are, if known.
        encoder: its fingerprint, see :class:`mmcl.encoding.corpora.stored.Fingerprint`, if known.

    Several threads may search one index at once. A forked process searches on one thread.

    >>> index = Index.build(np.eye(3, dtype="float32"), ids=["a", "b", "c"])
    >>> ids, scores = index.search([0.0, 1.0, 0.1], k=2)
    >>> ids.tolist()
    [['b', 'c']]
    """

    def __init__(self, index: Any, table: pa.Table, about: dict[str, Any]) -> None:
        self._index = index
        self._ids = table["id"].combine_chunks()
        self._labels = table["label"].combine_chunks() if "label" in table.column_names else None
        self._about = about
        self.dim: int = index.d
        self.similarity: Similarity = about["similarity"]
        self.spec: str = about["spec"]
        self.model: str | None = about["model"]
        self.encoder: dict[str, str] | None = about["encoder"]

    def __len__(self) -> int:
        return self._index.ntotal

    @classmethod
    def build(
        cls,
        vectors: Any,
        ids: Sequence[int] | Sequence[str] | np.ndarray | None = None,
        spec: str = "auto",
        similarity: Similarity = "cosine",
        model: str | None = None,
        *,
        labels: Sequence[str | None] | None = None,
        show_progress: bool | None = None,
    ) -> Index:
        """Build an index.

        Args:
            vectors: (N, D) array or tensor; or vectors on disk (`mmcl.encoding.open_vectors`), which are read shard by
                shard, so that memory holds the index and one block.
            ids: N integers or N strings, returned by a search; the vectors' own, else 0 … N-1. Equal ids are allowed:
                several vectors may stand for one thing, which a search may then return several times.
            spec: ``auto`` (exact below 200,000 vectors, see :func:`mmcl.retrieval.specs.choose_spec`) or any FAISS
                factory string. For an inverted file (``IVF…``) it is then measured how many cells a query must visit to
                find 99% of its ten best (:func:`mmcl.retrieval.specs.tune`). The same vectors and spec give the same
                index.
            similarity: ``cosine`` (vectors get unit length), ``dot``, or ``euclidean`` (the negative distance).
            model: name or folder of the encoder, to embed queries with; the vectors' own by default.
            labels: what to show for each vector in a table of results, such as a caption or a path.
            show_progress: a bar on stderr; None shows it on a terminal.

        Raises:
            MmclError: no vectors, NaN or infinity among them, a zero vector under cosine, ids or labels that do not
                fit, or a ``similarity`` or ``spec`` that does not exist or cannot hold these vectors.
        """
        if similarity not in get_args(Similarity):
            raise MmclError(f"unknown similarity '{similarity}'; {nearest(str(similarity), get_args(Similarity))}")
        ready_after_fork(torch.device("cpu"))
        shards = as_shards(vectors)
        count, dim = len(shards), shards.dim
        if count == 0 or dim == 0:
            raise MmclError(f"no vectors to index: their shape is ({count}, {dim})")
        table = shards.table() if ids is None else id_table(ids, count)
        if labels is not None:
            table = id_table(table["id"], count, labels)
        spec, why = specs.choose_spec(count, dim) if spec == "auto" else (spec, "chosen by the user")
        index = specs.make(spec, dim, similarity)
        trained_on = _fill(index, shards, table, spec, similarity, show_progress)
        about = {
            "spec": spec,
            "reason": why,
            "similarity": similarity,
            "dim": dim,
            "count": count,
            "model": model if model is not None else shards.model,
            "encoder": getattr(shards, "encoder", None) if model in (None, shards.model) else None,
            "trained_on": trained_on,
            "nprobe": None,
            "recall": None,
        }
        if specs.inverted_file(index):
            one, other = (prepared(shards.take(rows), similarity, str) for rows in specs.tuning_rows(count))
            about["nprobe"], about["recall"] = specs.tune(index, (one + other) / 2)
        return cls(index, table, about)

    def search(self, queries: Any, k: int = 10, *, nprobe: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar vectors for each query, best first.

        Args:
            queries: (Q, D) array or tensor; (D,) is one query, Q = 1.
            k: how many; no more than the index holds come back.
            nprobe: for an inverted file, cells to visit: more is slower and finds more. By default the number measured
                when the index was built; a query whose cells hold fewer than k vectors visits all.

        Returns:
            ids (Q, k), int64 or object array of strings, and scores (Q, k) float32: cosine, dot product, or negative
            Euclidean distance, so that higher is always better. Equal scores stand in the order of their positions, and
            in an exact index (``Flat``) the lower position also has precedence for the last place. Where an approximate
            graph such as HNSW reaches fewer than k vectors, the places left have score -inf and id None, which makes
            the ids an object array.

        Raises:
            MmclError: queries of another dimension, NaN or infinity among them, a zero query under cosine, k < 1.
        """
        ready_after_fork(torch.device("cpu"))
        queries = float32_array(queries)
        queries = queries[None] if queries.ndim == 1 else queries
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise MmclError(
                f"queries have shape {queries.shape}, the index holds vectors of {self.dim} dimensions"
                + (f" from model '{self.model}'; embed the queries with it" if self.model else "")
            )
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise MmclError(f"k is {k!r}; it must be a whole number from 1 up")
        inverted = specs.inverted_file(self._index)
        if nprobe is not None and (inverted is None or nprobe < 1):
            raise MmclError(f"nprobe is {nprobe!r}; it must be 1 or more, and only inverted files (IVF…) have cells")
        cells = min(nprobe or self._about["nprobe"], inverted.nlist) if inverted else None
        queries = prepared(queries, self.similarity, lambda row: f"query {row}")
        scores, positions = self._nearest(queries, min(int(k), len(self)), cells)
        nowhere = positions < 0
        ids = to_numpy(self._ids.take(pa.array(np.where(nowhere, 0, positions).ravel()))).reshape(positions.shape)
        if nowhere.any():
            ids = ids.astype(object)
            ids[nowhere] = None
        return ids, scores

    def _nearest(self, queries: np.ndarray, k: int, cells: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Scores and positions, each (Q, k); -inf and -1 where nothing was found."""
        if not len(queries):
            return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        exact = isinstance(self._index, faiss.IndexFlat)
        scores, positions = self._ranked(queries, min(k + exact, len(self)), cells)
        short = positions[:, -1] < 0
        if short.any() and (inverted := specs.inverted_file(self._index)):
            scores[short], positions[short] = self._ranked(queries[short], k, inverted.nlist)
        if exact:
            self._settle_ties(queries, k, scores, positions)
        return scores[:, :k].copy(), positions[:, :k].copy()

    def _ranked(self, queries: np.ndarray, depth: int, cells: int | None) -> tuple[np.ndarray, np.ndarray]:
        scores, positions = self._index.search(queries, depth, params=specs.visiting(self._index, cells))
        if self.similarity == "euclidean":
            scores = -np.sqrt(np.maximum(scores, 0))  # FAISS gives the squared distance
        if positions.max() >= len(self):
            raise MmclError(
                f"the index is damaged: it holds a vector number {positions.max():,} of {len(self):,}; {_REBUILD}"
            )
        scores[positions < 0] = -np.inf
        order = np.lexsort((np.where(positions < 0, len(self), positions), -scores))
        return np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1)

    def _settle_ties(self, queries: np.ndarray, k: int, scores: np.ndarray, positions: np.ndarray) -> None:
        """Search deeper, in place, where the last place's score goes on below it: FAISS keeps any of the equal ones."""
        depth = scores.shape[1]
        tied = np.flatnonzero((scores[:, k - 1] == scores[:, -1]) & (k < depth))
        while len(tied):
            depth = min(4 * depth, len(self))
            still = []
            for start in range(0, len(tied), step := max(1, _TIED_CELLS // depth)):
                rows = tied[start : start + step]
                deeper_scores, deeper = self._ranked(queries[rows], depth, None)
                scores[rows, :k], positions[rows, :k] = deeper_scores[:, :k], deeper[:, :k]
                still.append(rows[deeper_scores[:, k - 1] == deeper_scores[:, -1]])
            tied = np.concatenate(still) if depth < len(self) else tied[:0]

    def labels_of(self, ids: Sequence[int] | Sequence[str] | np.ndarray) -> list[str | None]:
        """What to show for these ids: the label of the first vector of that id; None without one, or an unknown id."""
        wanted = list(ids)
        if self._labels is None or not wanted:
            return [None] * len(wanted)
        values = pa.array(wanted, self._ids.type)
        positions = np.flatnonzero(pc.is_in(self._ids, value_set=values).to_numpy(zero_copy_only=False))[::-1]
        taken = pa.array(positions)
        found = dict(zip(self._ids.take(taken).to_pylist(), self._labels.take(taken).to_pylist(), strict=True))
        return [found.get(id_) for id_ in values.to_pylist()]

    def info(self) -> dict[str, Any]:
        """What the index is: spec and why it was chosen, similarity, dim, count, model, rows trained on; for an
        inverted file ``nprobe`` and the ``recall`` of the ten best measured with it; the ids' type."""
        kind = "int" if pa.types.is_integer(self._ids.type) else "string"
        return dict(self._about) | {"ids": kind, "labels": self._labels is not None}

    def save(self, folder: str | Path) -> None:
        """Write ``index.faiss``, ``ids.parquet`` and ``index.json`` to a folder, completely or not at all.

        An index already there is replaced.

        Raises:
            MmclError: ``folder`` is a file, or a folder that holds something other than an index.
            OSError: the disk is full or refuses.
        """
        folder = check_free(folder)
        columns = {"id": self._ids} | ({"label": self._labels} if self._labels is not None else {})
        about = self._about | {"near": near(folder, self.model)}
        with atomic_folder(folder) as beside:
            write_table(beside / "ids.parquet", pa.table(columns))
            try:
                faiss.write_index(self._index, str(beside / "index.faiss"))
            except RuntimeError as error:
                if "No space left" in str(error):
                    raise OSError(errno.ENOSPC, "No space left on device", str(folder)) from None
                raise
            files = {name: file_record(beside / name) for name in ("index.faiss", "ids.parquet")}
            write_description(beside / "index.json", _FORMAT, _VERSION, about | {"files": files})

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = True) -> Index:
        """Read an index from its folder.

        Args:
            folder: what :meth:`save` wrote.
            verify: compare the files' SHA-256, which takes a second or two per GB; else their sizes alone.

        Raises:
            MmclError: not an index, a file missing or damaged, or written by a newer mmcl.
        """
        folder = as_path(folder)
        path = folder / "index.json"
        about = validated(_About, read_description(path, _FORMAT, _VERSION, _REBUILD), path, _REBUILD).model_dump()
        files, nearby = about.pop("files"), about.pop("near")
        for name in ("index.faiss", "ids.parquet"):
            if name not in files:
                raise MmclError(f"{path}: damaged, '{name}' is not among its files; {_REBUILD}")
        for name in ("index.faiss", "ids.parquet"):
            check_file(folder / name, files[name], checksum=verify, cure=_REBUILD)
        table = read_table(folder / "ids.parquet")
        try:
            index = faiss.read_index(str(folder / "index.faiss"))
        except MemoryError:
            raise MmclError(
                f"{folder / 'index.faiss'}: damaged, or larger than the memory there is; {_REBUILD}"
            ) from None
        except Exception as error:  # RuntimeError, and what the wrapper makes of other C++ exceptions
            raise MmclError(f"{folder / 'index.faiss'}: damaged ({specs.reason(error):.200}); {_REBUILD}") from None
        together = index.ntotal == len(table) == about["count"] and index.d == about["dim"]
        if not together or index.metric_type != specs.METRICS[about["similarity"]]:
            raise MmclError(f"{folder}: its files do not belong together; {_REBUILD}")
        if specs.inverted_file(index) is not None and about["nprobe"] is None:
            raise MmclError(f"{path}: damaged, 'nprobe' is missing; {_REBUILD}")
        about["model"] = found_model(folder, about["model"], nearby)
        return cls(index, table, about)


def check_free(folder: str | Path) -> Path:
    """The absolute path of a folder that :meth:`Index.save` may write. Raises ``MmclError`` if it may not."""
    folder_to_write(folder)
    folder = as_path(folder).absolute()
    if folder.exists() and not (folder / "index.json").exists() and any(folder.iterdir()):
        raise MmclError(f"{folder}: exists and is no index, so it is not replaced; choose another folder")
    return folder


def _fill(
    index: Any, shards: VectorShards, table: pa.Table, spec: str, similarity: Similarity, show: bool | None
) -> int:
    """Train the index if it must be, add every vector, and return how many it was trained on."""
    rows = np.arange(0) if index.is_trained else specs.training_rows(index, len(shards))
    try:
        if len(rows):
            sample = prepared(shards.take(rows), similarity, lambda row: f"id {table['id'][int(rows[row])].as_py()!r}")
            with log_progress(f"train the index on {len(rows):,} vectors", None):
                index.train(sample)
        with progress("index", len(shards), "vectors", show) as advance:
            for _, shard in shards.iter_shards():
                for start in range(0, len(shard), _BLOCK):
                    first = index.ntotal
                    name = lambda row, first=first: f"id {table['id'][first + int(row)].as_py()!r}"  # noqa: E731
                    index.add(prepared(shard[start : start + _BLOCK], similarity, name))
                    advance(index.ntotal - first)
    except RuntimeError as error:
        raise MmclError(
            f"index spec '{spec}' cannot hold these {len(shards):,} vectors ({specs.reason(error)}); try spec='auto'"
        ) from None
    return len(rows)
