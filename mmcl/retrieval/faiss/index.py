"""An index over FAISS: built from memory or from disk, searched, changed, saved and loaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import torch

from mmcl.encoding.corpora.stored import to_numpy
from mmcl.losses.logits.similarity import Similarity
from mmcl.retrieval.faiss import contents, specs, stored
from mmcl.retrieval.faiss.build import CHOSEN, fill, held_out, held_out_again, ids_and_columns, reason_to_rebuild
from mmcl.retrieval.faiss.held_out import HeldOut
from mmcl.retrieval.faiss.search import nearest
from mmcl.retrieval.faiss.selection import Selections
from mmcl.retrieval.faiss.tuning import tune
from mmcl.retrieval.filters import kind_of
from mmcl.retrieval.index import Hits, Ids, MetaColumns, VectorShards, check_free, replaced
from mmcl.retrieval.inputs import (
    InMemory,
    as_shards,
    asked_for,
    blocks,
    check_origin,
    check_similarity,
    float32_array,
    in_messages,
    prepared,
)
from mmcl.retrieval.metadata import Metadata
from mmcl.runtime.device import ready_after_fork
from mmcl.runtime.errors import MmclError

_REMEASURED = 0.1  # share of the vectors whose change has the recall measured again at once
log = logging.getLogger("mmcl")

if hasattr(os, "register_at_fork"):  # FAISS, as torch, would wait for ever for threads that are not forked
    os.register_at_fork(after_in_child=lambda: faiss.omp_set_num_threads(1))


class Index:
    """Vectors that answer which of them are most similar to a query. Made by :meth:`build` or :meth:`load`.

    Attributes:
        dim: components of a vector.
        similarity: ``cosine``, ``dot`` or ``euclidean``.
        spec: the FAISS factory string of the index.
        model: name or folder of the encoder whose vectors these are, if known.
        encoder: its fingerprint, see :class:`mmcl.encoding.corpora.stored.Fingerprint`, if known.

    Several threads may search one index at once, while none changes it. A forked process searches on one thread.

    >>> index = Index.build(np.eye(3, dtype="float32"), ids=["a", "b", "c"], columns={"price": [10, 20, 30]})
    >>> ids, scores = index.search([0.0, 1.0, 0.1], k=2)
    >>> ids.tolist()
    [['b', 'c']]
    >>> index.search([0.0, 1.0, 0.1], k=2, where="price > 20")[0].tolist()
    [['c']]
    """

    def __init__(self, index: Any, metadata: Metadata, about: dict[str, Any], held: HeldOut | None = None) -> None:
        self._index = index
        self._metadata = metadata
        self._about = about
        self._held = held
        self._unmeasured = 0  # vectors that came or went since the recall was measured
        self.dim: int = index.d
        self._selections = Selections(self.dim)
        self.similarity: Similarity = about["similarity"]
        self.spec: str = about["spec"]
        self.model: str | None = about["model"]
        self.encoder: dict[str, str] | None = about["encoder"]

    def __len__(self) -> int:
        return self._metadata.count

    @classmethod
    def build(
        cls,
        vectors: Any,
        ids: Ids | None = None,
        spec: str = "auto",
        similarity: Similarity = "cosine",
        model: str | None = None,
        *,
        columns: MetaColumns | None = None,
        labels: Sequence[str | None] | None = None,
        recall: float = 0.95,
        memory: int | None = None,
        show_progress: bool | None = None,
    ) -> Index:
        """Build an index.

        Args:
            vectors: (N, D) array or tensor; or vectors on disk (`mmcl.encoding.open_vectors`), which are read shard by
                shard, so that memory holds the index and one block.
            ids: N integers or N strings, returned by a search; the vectors' own, else 0 … N-1. Equal ids are allowed:
                several vectors may stand for one thing, which a search may then return several times.
            spec: ``auto`` (exact below 200,000 vectors, see :func:`mmcl.retrieval.faiss.specs.choose_spec`) or any
                FAISS factory string. Of one that is not exact it is then measured how much a search must look at
                (:func:`mmcl.retrieval.faiss.tuning.tune`). The same vectors and spec give the same index.
            similarity: ``cosine`` (vectors get unit length), ``dot``, or ``euclidean`` (the negative distance).
            model: name or folder of the encoder, to embed queries with; the vectors' own by default.
            columns: metadata beside the vectors, {name: N values} or an Arrow table: text, numbers, booleans, times or
                lists of these, None where there is none; a search's ``where`` asks for them.
            labels: what to show for each vector in a table of results, such as a caption or a path.
            recall: share of the ten nearest that an approximate index is to find. If it cannot, it says so; with
                ``auto`` it then ranks its hits again by finer copies of the vectors, while ``memory`` allows it.
            memory: bytes that an ``auto`` index may take; None: as many as it is best with.
            show_progress: a bar on stderr; None shows it on a terminal.

        Raises:
            MmclError: no vectors, NaN or infinity among them, a zero vector under cosine, ids, labels or columns that
                do not fit, or a ``similarity`` or ``spec`` that does not exist or cannot hold these vectors.
        """
        check_similarity(similarity)
        if not 0 < recall <= 1:
            raise MmclError(f"recall is {recall}; it is a share of the nearest, above 0 and at most 1")
        ready_after_fork(torch.device("cpu"))
        shards = as_shards(vectors)
        count, dim = len(shards), shards.dim
        if count == 0 or dim == 0:
            raise MmclError(f"{in_messages(shards)} are of shape ({count}, {dim}): nothing to index")
        table = ids_and_columns(shards, ids, columns, labels)
        auto = spec == "auto"
        spec, why = specs.choose_spec(count, dim, memory) if auto else (spec, CHOSEN)
        index = specs.make(spec, dim, similarity)
        held = None if isinstance(index, faiss.IndexFlat) else held_out(shards, similarity, table)
        trained_on = fill(index, shards, table, spec, similarity, held, show_progress)
        about: dict[str, Any] = {
            "engine": "faiss",
            "spec": spec,
            "reason": why,
            "similarity": similarity,
            "dim": dim,
            "count": count,
            "removed": 0,
            "count_when_built": count,
            "model": model if model is not None else shards.model,
            "encoder": getattr(shards, "encoder", None) if model in (None, shards.model) else None,
            "trained_on": trained_on,
            "effort": None,
            "recall": None,
            "target": recall,
            "curve": [],
        }
        built = cls(index, Metadata(table), about, held)
        reached = built._tune()
        while auto and not reached and built._refine(shards, memory, show_progress):
            reached = built._tune()
        if not reached:
            log.warning(f"recall@10 is {built._about['recall']:.3f}, below the {recall:g} asked for")
        return built

    def search(
        self, queries: Any, k: int = 10, *, where: str | None = None, nprobe: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar vectors for each query, best first.

        Args:
            queries: (Q, D) array or tensor; (D,) is one query, Q = 1.
            k: how many; no more than the index, or ``where``, has come back.
            where: a condition on id, label and columns, such as ``category = 'shoes' and price < 50``
                (:mod:`mmcl.retrieval.filters`). What it leaves is searched exactly where it is little, else with more
                effort than the whole (:mod:`mmcl.retrieval.faiss.search`).
            nprobe: for an inverted file, cells to visit: more is slower and finds more. By default the number measured
                when the index was built; a query whose cells hold fewer than k vectors visits all.

        Returns:
            ids (Q, k), int64 or object array of strings, and scores (Q, k) float32: cosine, dot product, or negative
            Euclidean distance, so that higher is always better. Equal scores stand in the order of their positions, and
            in an exact index (``Flat``) the lower position also has precedence for the last place. Where an approximate
            graph such as HNSW reaches fewer than k vectors, the places left have score -inf and id None, which makes
            the ids an object array.

        Raises:
            MmclError: queries of another dimension, NaN or infinity among them, a zero query under cosine, k < 1, or a
                condition that cannot be understood or asks for a column that there is not.
        """
        if nprobe is not None and (specs.inverted_file(self._index) is None or nprobe < 1):
            raise MmclError(f"nprobe is {nprobe!r}; it must be 1 or more, and only inverted files (IVF…) have cells")
        scores, positions = self._asked(queries, k, where, nprobe)
        return self._ids_at(positions), scores

    def hits(self, queries: Any, k: int = 10, *, where: str | None = None) -> Hits:
        """What :meth:`search` finds, with the metadata of each vector found, which :meth:`rows` must look up by id."""
        scores, positions = self._asked(queries, k, where)
        return Hits(self._ids_at(positions), scores, self._metadata.at(positions.ravel()))

    def _asked(
        self, queries: Any, k: int, where: str | None, effort: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and positions of queries as a caller gives them."""
        ready_after_fork(torch.device("cpu"))
        prepared_queries = asked_for(queries, k, self.dim, self.similarity, self.model)
        return self._found(prepared_queries, int(k), where, effort)

    def _ids_at(self, positions: np.ndarray) -> np.ndarray:
        """(Q, k) ids at positions; None, which makes them an object array, for -1."""
        nowhere = positions < 0
        ids = to_numpy(self._metadata.ids.take(pa.array(np.where(nowhere, 0, positions).ravel())))
        ids = ids.reshape(positions.shape)
        if nowhere.any():
            ids = ids.astype(object)
            ids[nowhere] = None
        return ids

    def _found(
        self, queries: np.ndarray, k: int, where: str | None = None, effort: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and positions of prepared queries."""
        selection = self._selections.of(where, self._metadata)
        k = min(k, len(self) if selection is None else len(selection))
        effort = effort or self._about["effort"]
        scores, positions = nearest(self._index, queries, k, self.similarity, effort, selection)
        if positions.max(initial=-1) >= len(self._metadata.table):
            raise MmclError(
                f"the index is damaged: it holds a vector number {positions.max():,} of {len(self._metadata.table):,}; "
                + stored.REBUILD
            )
        return scores, positions

    def add(self, vectors: Any, ids: Ids | None = None, *, columns: MetaColumns | None = None) -> None:
        """Add vectors.

        Args:
            vectors: (N, D) array or tensor, or vectors on disk.
            ids: N of them, of the type that the index has; those on disk have their own. Equal ids are allowed.
            columns: the same metadata as of the vectors that are there; labels as a column ``label``.

        Raises:
            MmclError: and nothing is added: another dimension or model, NaN or infinity, a zero vector under cosine,
                ids or columns that do not fit, or an index that cannot grow.
        """
        self._grow(vectors, ids, columns, np.arange(0))

    def upsert(self, vectors: Any, ids: Ids | None = None, *, columns: MetaColumns | None = None) -> None:
        """As :meth:`add`, in the place of all vectors of the same ids, if there are any."""
        shards = as_shards(vectors)
        replaced = self._metadata.every(self._ids_of(shards, ids))
        self._grow(shards, ids, columns, replaced)

    def remove(self, ids: Ids) -> None:
        """Remove every vector of these ids.

        Where FAISS cannot delete (HNSW), they are kept out of every result, and it is said when these are so many that
        the index should be built anew.

        Raises:
            MmclError: and nothing is removed: there is no vector of one of the ids, or none would be left.
        """
        self._metadata.known(ids)
        positions = self._metadata.every(ids)
        if len(positions) == len(self):
            raise MmclError("no vector would be left in the index; delete its folder, or build it anew")
        self._drop(positions)
        self._changed(len(positions))

    def _ids_of(self, shards: VectorShards, ids: Ids | None) -> Any:
        if ids is None and isinstance(shards, InMemory):
            raise MmclError("vectors are added under ids; give one for each")
        return shards.table()["id"] if ids is None else ids

    def _grow(self, vectors: Any, ids: Ids | None, columns: MetaColumns | None, replaced: np.ndarray) -> None:
        ready_after_fork(torch.device("cpu"))
        shards = as_shards(vectors)
        check_origin(shards, self)
        own = shards.table().drop_columns(["id"]) if ids is None and not isinstance(shards, InMemory) else None
        given = own if columns is None else columns
        table = self._metadata.fitting(self._ids_of(shards, ids), len(shards), given)
        for _ in blocks(shards, self.similarity, table):  # all are looked at before one is added
            pass
        try:
            for _, block in blocks(shards, self.similarity, table):
                self._index.add(block)
                if self._held is not None:
                    self._held.extend(block, np.arange(self._index.ntotal - len(block), self._index.ntotal))
        except RuntimeError as error:
            raise MmclError(
                f"an index of spec '{self.spec}' cannot grow ({specs.reason(error):.200}); {stored.REBUILD}"
            ) from None
        self._metadata = self._metadata.added(table)
        if len(replaced):
            self._drop(replaced)
        self._changed(len(table) + len(replaced))

    def _drop(self, positions: np.ndarray) -> None:
        places, closed = len(self._metadata.table), contents.deletes(self._index)
        if self._held is not None:
            self._held.removed(positions, places, closed=closed)
        if closed:
            contents.delete(self._index, positions)
            keep = np.ones(places, bool)
            keep[positions] = False
            self._metadata = Metadata(self._metadata.table.filter(pa.array(keep)))
        else:
            self._metadata = self._metadata.marked(positions)

    def _changed(self, vectors: int) -> None:
        self._selections.clear()
        self._about |= {"count": len(self), "removed": self._index.ntotal - len(self)}
        self._unmeasured += vectors
        if self._unmeasured >= _REMEASURED * len(self):
            self.measure()
        if advice := reason_to_rebuild(self._index, self._about):
            log.warning(f"the index is due to be built anew: {advice}")

    def measure(self) -> float | None:
        """Measure recall@10 again, by exact search of held-out queries, and search with more effort if it is too low.

        :meth:`save` and :meth:`info` do so if vectors came or went since, and so does a change of a tenth of them.

        Returns:
            The share of the ten nearest that a search finds; None where it cannot be known.
        """
        before, self._unmeasured = self._about["recall"], 0
        if isinstance(self._index, faiss.IndexFlat):
            return self._about["recall"]
        if self._held is None or not self._held.enough():
            removed = self._metadata.removed
            live = np.arange(self._index.ntotal) if removed is None else np.flatnonzero(~removed)
            self._held = held_out_again(self._index, live, self.similarity)
        if self._held is None:
            self._about["recall"] = None
            log.warning("how much the index now finds cannot be measured: an index of its spec gives no vectors back")
            return None
        recall, target = self._recall(), self._about["target"]
        self._about["recall"] = recall
        reached = recall >= target or self._tune()
        recall = self._about["recall"]
        then = f", {before:.3f} before" if before is not None else ""
        log.info(f"recall@10 of {len(self):,} vectors, measured again on held-out queries: {recall:.3f}{then}")
        if not reached:
            log.warning(f"recall@10 is {recall:.3f}, below the stated {target:g}; {stored.REBUILD}")
        return recall

    def tune(self, queries: Any, vectors: Any) -> float:
        """Tune to queries of your own, such as texts that will ask for images: half of them choose how much a search
        looks at, the other half measure what it finds.

        Args:
            queries: (Q, D) array, tensor, or vectors on disk, some hundreds.
            vectors: the N that the index was built from, in their order, for exact search.

        Returns:
            The share of the ten nearest that a search finds, 1 of an exact index.

        Raises:
            MmclError: other vectors than those of the index, or queries as :meth:`search` refuses them.
        """
        shards, asked = as_shards(vectors), float32_array(queries)
        places = self._index.ntotal
        if len(shards) != places or asked.ndim != 2 or not len(asked) or {shards.dim, asked.shape[1]} != {self.dim}:
            raise MmclError(
                f"queries of shape {asked.shape} and {len(shards):,} vectors of {shards.dim} dimensions do not fit the "
                f"index, which was built from {places:,} of {self.dim}"
            )
        asked = prepared(asked, self.similarity, lambda row: f"query {row}")
        if self._held is not None:
            self._held = HeldOut(asked, np.full(len(asked), -1), self.similarity)
            for first, block in blocks(shards, self.similarity, self._metadata.table):
                self._held.extend(block, np.arange(first, first + len(block)))
            if self._metadata.removed is not None:
                self._held.removed(np.flatnonzero(self._metadata.removed), places, closed=False)
        if not self._tune():
            log.warning(f"recall@10 is {self._about['recall']:.3f}, below the {self._about['target']:g} asked for")
        return self._about["recall"]

    def _recall(self) -> float:
        assert self._held is not None
        return self._held.recall(lambda queries, k: self._found(queries, k)[1])

    def _tune(self) -> bool:
        """Find the least effort that reaches the stated recall. Returns whether there is one."""
        if self._held is None:
            self._about["recall"] = 1.0
            return True
        search = lambda queries, k, effort: self._found(queries, k, effort=effort)[1]  # noqa: E731
        tuned = tune(self._index, self._held, self._about["target"], search)
        curve = [list(point) for point in tuned.curve]
        self._about |= {"effort": tuned.effort, "recall": tuned.recall, "curve": curve}
        return tuned.reached

    def _refine(self, shards: VectorShards, memory: int | None, show: bool | None) -> bool:
        """Rank hits again by a finer copy of the vectors than now. Returns whether one fits ``memory``."""
        finer = specs.finer(self.spec, len(self), self.dim, memory)
        if finer is None:
            return False
        self._about["reason"] += f"; {self.spec} found {self._about['recall']:.3f} of the ten nearest"
        self._index = specs.refine(self._index, finer, self.similarity)
        store = faiss.downcast_index(self._index.refine_index)
        fill(store, shards, self._metadata.table, finer, self.similarity, None, show)
        self.spec = self._about["spec"] = finer
        return True

    def has(self, ids: Ids, *, where: str | None = None) -> np.ndarray:
        """(n,) bool: of which of these ids there is a vector, whose metadata fulfils ``where``."""
        return self._metadata.positions(ids, where) >= 0

    def rows(self, ids: Ids, *, where: str | None = None) -> pa.Table:
        """Metadata of these ids, a row each, in their order: ``id``, ``label`` if there are any, and the other columns.

        Of an id of several vectors it is that of the first, or of the first which fulfils the condition ``where``.

        Raises:
            MmclError: there is no such id, or none of its vectors fulfils the condition.
        """
        return self._metadata.table.take(pa.array(self._metadata.known(ids, where)))

    def vectors(self, ids: Ids) -> np.ndarray:
        """(n, D) float32 vectors of these ids, of several of an id the first: as the index holds them, of unit length
        under cosine, and rounded where it compresses.

        Raises:
            MmclError: there is no such id, or the index keeps too little to give vectors back.
        """
        return contents.stored_vectors(self._index, self._metadata.known(ids))

    def info(self) -> dict[str, Any]:
        """What the index is: spec and why it was chosen, similarity, dim, model; ``count`` of the vectors that can be
        found, and of those ``removed`` that are still in it; ``recall`` of the ten nearest as measured last, beside its
        ``target``; ``nprobe`` of an inverted file or ``ef_search`` of a graph; the ids' type and the names of
        the columns and what they hold; and ``rebuild``, why it should be built anew, if so."""
        if self._unmeasured:
            self.measure()
        about = dict(self._about)
        effort = about.pop("effort")
        kind = "nprobe" if specs.inverted_file(self._index) is not None else "ef_search"
        schema = self._metadata.table.schema
        columns = {name: kind_of(schema.field(name).type) for name in self._metadata.columns}
        return about | {
            kind: effort,
            "ids": self._metadata.kind,
            "labels": "label" in schema.names,
            "columns": columns,
            "rebuild": reason_to_rebuild(self._index, self._about),
        }

    def save(self, folder: str | Path) -> None:
        """Write ``index.faiss``, ``ids.parquet``, ``index.json`` and what else belongs to the index to a folder,
        completely or not at all: killed at any moment, it leaves the old index or the new one.

        An index already there is replaced.

        Raises:
            MmclError: ``folder`` is a file, or a folder that holds something other than an index.
            OSError: the disk is full or refuses.
        """
        if self._unmeasured:
            self.measure()
        with replaced(check_free(folder), self) as new:
            stored.write(new, self._index, self._metadata, self._held, self._about)

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = True) -> Index:
        """Read an index from its folder.

        Args:
            folder: what :meth:`save` wrote.
            verify: compare the files' SHA-256, which takes a second or two per GB; else their sizes alone.

        Raises:
            MmclError: not an index, a file missing or damaged, or written by a newer mmcl.
        """
        index, metadata, held, about = stored.read(folder, verify=verify)
        return cls(index, metadata, about, held)
