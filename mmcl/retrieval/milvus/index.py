"""The index over Milvus."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field

from mmcl.encoding.corpora.stored import (
    CorpusFingerprint,
    Stored,
    found_model,
    id_table,
    near,
    read_description,
    validated,
    write_description,
)
from mmcl.losses.logits.similarity import Similarity
from mmcl.retrieval.filters import kind_of
from mmcl.retrieval.index import INDEX_FILE, Hits, Ids, MetaColumns, VectorShards, check_free, replaced
from mmcl.retrieval.inputs import as_shards, asked_for, blocks, check_origin, check_similarity, in_messages
from mmcl.retrieval.metadata import Metadata, with_columns
from mmcl.retrieval.milvus.collection import MOST, Collection, columns_of
from mmcl.retrieval.milvus.filters import expression
from mmcl.retrieval.milvus.server import is_local
from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.files import as_path
from mmcl.runtime.progress import progress

_FORMAT, _VERSION = "mmcl index", 1
_REBUILD = "build it with: mmcl index build VECTORS --to milvus --uri URI --out INDEX"
_KINDS = (
    *("AUTOINDEX", "FLAT", "DISKANN", "SCANN", "HNSW", "HNSW_SQ", "HNSW_PQ", "HNSW_PRQ"),
    *("IVF_FLAT", "IVF_SQ8", "IVF_PQ", "IVF_RABITQ", "GPU_BRUTE_FORCE", "GPU_CAGRA", "GPU_IVF_FLAT", "GPU_IVF_PQ"),
)
_SCALARS = (pa.large_string(), pa.int64(), pa.float64(), pa.bool_(), pa.timestamp("us"), pa.timestamp("us", "UTC"))
_TYPES = {str(kind): kind for scalar in _SCALARS for kind in (scalar, pa.large_list(scalar))}

log = logging.getLogger("mmcl")


class _About(Stored):
    engine: Literal["milvus"]
    uri: str
    near_uri: str | None
    collection: str
    spec: str
    similarity: Similarity
    dim: Annotated[int, Field(ge=1)]
    model: str | None
    near: str | None = None
    encoder: CorpusFingerprint | None = None
    columns: dict[str, str]


class MilvusIndex:
    """Vectors in a collection of Milvus. Made by :meth:`build` or :meth:`load`.

    The folder that :meth:`save` writes says where the collection is, and whose vectors it holds; the vectors stay on
    the server, where ``add``, ``remove`` and ``upsert`` change them at once. What is written in one of them arrives
    block by block: a process that is killed leaves a part of them there, never less than before.

    Attributes:
        dim: components of a vector.
        similarity: ``cosine``, ``dot`` or ``euclidean``.
        spec: kind and parameters of Milvus' index.
        model: name or folder of the encoder whose vectors these are, if known.
        encoder: its fingerprint, see :class:`mmcl.encoding.corpora.stored.CorpusFingerprint`, if known.
    """

    def __init__(self, about: dict[str, Any], schema: pa.Schema) -> None:
        self._about = about
        self._collection = Collection(about["uri"], about["collection"], schema)
        self._squared: bool | None = None
        self.dim: int = about["dim"]
        self.similarity: Similarity = about["similarity"]
        self.spec: str = about["spec"]
        self.model: str | None = about["model"]
        self.encoder: dict[str, str] | None = about["encoder"]

    def __len__(self) -> int:
        return self._collection.count()

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
        uri: str | None = None,
    ) -> Self:
        """Write vectors into a new collection of a server.

        Args:
            vectors, ids, similarity, model, columns, labels, show_progress: as of
                :class:`~mmcl.retrieval.index.VectorIndex`; vectors on disk are read shard by shard.
            spec: ``auto`` leaves the index to Milvus (``AUTOINDEX``); or one of its kinds with parameters, such as
                ``HNSW,M=16,efConstruction=200`` or ``FLAT``, which is exact.
            recall, memory: are left to Milvus.
            uri: of the server, ``http://HOST:PORT``; or ``FILE.db``, which Milvus Lite opens.

        Raises:
            MmclError: no server answers, it knows no such ``spec``, or as of an index over FAISS.
        """
        check_similarity(similarity)
        if uri is None:
            raise MmclError("an index in Milvus needs to know where: give --uri, as http://localhost:19530 or FILE.db")
        kind, parameters = _parsed(spec)
        shards = as_shards(vectors)
        count, dim = len(shards), shards.dim
        if count == 0 or dim == 0:
            raise MmclError(f"{in_messages(shards)} are of shape ({count}, {dim}): nothing to index")
        table = shards.table() if ids is None else id_table(ids, count)
        table = with_columns(table.select(["id"]), _together(table, labels, columns))
        about = {
            "engine": "milvus",
            "uri": str(as_path(uri).absolute()) if is_local(uri) else uri,
            "collection": f"mmcl_{uuid.uuid4().hex[:12]}",
            "spec": spec,
            "similarity": similarity,
            "dim": dim,
            "model": model if model is not None else shards.model,
            "encoder": getattr(shards, "encoder", None) if model in (None, shards.model) else None,
        }
        index = cls(about, table.schema)
        index._collection.create(dim, similarity, kind, parameters)
        try:
            index._write(shards, table, show_progress)
        except BaseException:
            with suppress(MmclError):  # of a server that is no longer there
                index._collection.drop()
            raise
        return index

    def search(self, queries: Any, k: int = 10, *, where: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar vectors for each query, best first, as :class:`~mmcl.retrieval.index.VectorIndex` says.

        Args:
            queries: (Q, D) array or tensor; (D,) is one query, Q = 1.
            k: how many, up to 16,384.
            where: a condition, see :mod:`mmcl.retrieval.filters`, which Milvus evaluates.

        Raises:
            MmclError: queries of another dimension, NaN or infinity among them, a zero query under cosine, k < 1, a
                condition that does not fit the columns, or no server answers.
        """
        found = self._found(queries, k, where)
        return self._ids_and_scores(found)

    def hits(self, queries: Any, k: int = 10, *, where: str | None = None) -> Hits:
        """What :meth:`search` finds, with the metadata of each vector found."""
        found = self._found(queries, k, where, columns=True)
        ids, scores = self._ids_and_scores(found)
        nothing: dict[str, Any] = {}
        rows = [row for hits in found for row in [*(row for row, _ in hits), *[nothing] * (ids.shape[1] - len(hits))]]
        return Hits(ids, scores, columns_of(rows, self._collection))

    def _found(
        self, queries: Any, k: int, where: str | None, *, columns: bool = False
    ) -> list[list[tuple[dict[str, Any], float]]]:
        queries = asked_for(queries, k, self.dim, self.similarity, self.model)
        if k > MOST:
            raise MmclError(f"k is {k:,}; Milvus gives {MOST:,} results at most")
        condition = self._condition(where)
        if not len(queries):
            return []
        return list(self._collection.search(queries, int(k), self.similarity, condition, columns=columns))

    def _ids_and_scores(self, found: Sequence[Sequence[tuple[dict[str, Any], float]]]) -> tuple[np.ndarray, np.ndarray]:
        width = max(map(len, found), default=0)
        ids = np.full((len(found), width), None, dtype=object)
        scores = np.full((len(found), width), -np.inf, dtype=np.float32)
        for query, hits in enumerate(found):
            for place, (row, distance) in enumerate(hits):
                ids[query, place], scores[query, place] = row["id"], distance
        if self.similarity == "euclidean" and width:
            reached = np.isfinite(scores)
            scores[reached] = -(np.sqrt(scores[reached]) if self._distances_are_squared() else scores[reached])
        whole = self._id_type == pa.int64() and np.isfinite(scores).all()
        return (ids.astype(np.int64) if whole else ids), scores

    def add(self, vectors: Any, ids: Ids, *, columns: MetaColumns | None = None) -> None:
        """Add (N, D) vectors under N ids, with the columns that the others have."""
        self._write(*self._fitting(vectors, ids, columns))

    def remove(self, ids: Ids) -> None:
        """Remove every vector of these ids. Raises ``MmclError``, and removes nothing, if there is none of one."""
        wanted = self._wanted(ids)
        self._known(wanted)
        self._collection.delete(self._collection.keys(wanted))
        self._collection.flush()

    def upsert(self, vectors: Any, ids: Ids, *, columns: MetaColumns | None = None) -> None:
        """Add vectors in the place of those of the same ids: these are removed once the new ones are there."""
        shards, table = self._fitting(vectors, ids, columns)
        before = self._collection.keys(table["id"].combine_chunks())
        self._write(shards, table)
        self._collection.delete(before)
        self._collection.flush()

    def has(self, ids: Ids, *, where: str | None = None) -> np.ndarray:
        """(n,) bool: of which of these ids there is a vector, whose metadata fulfils ``where``."""
        wanted = self._wanted(ids)
        found = self._collection.first(wanted, self._condition(where))
        return np.array([name in found for name in wanted.to_pylist()], dtype=bool)

    def rows(self, ids: Ids, *, where: str | None = None) -> pa.Table:
        """Metadata of these ids, a row each, of the first vector of an id which fulfils ``where``. Raises ``MmclError``
        for an id without."""
        wanted = self._wanted(ids)
        found = self._known(wanted, where)
        return columns_of([found[name] for name in wanted.to_pylist()], self._collection)

    def vectors(self, ids: Ids) -> np.ndarray:
        """(N, D) float32 vectors of these ids. Raises ``MmclError`` for an unknown id."""
        wanted = self._wanted(ids)
        found = self._known(wanted, vectors=True)
        rows = [found[name]["vector"] for name in wanted.to_pylist()]
        return np.array(rows, np.float32).reshape(-1, self.dim)

    def info(self) -> dict[str, Any]:
        """Where the vectors are, how many, their model, the kind of index and the columns."""
        schema = self._collection.schema
        columns = {field.name: kind_of(field.type) for field in schema if field.name not in ("id", "label")}
        return self._about | {
            "count": len(self),
            "ids": self._nothing().kind,
            "labels": "label" in schema.names,
            "columns": columns,
        }

    def save(self, folder: str | Path) -> None:
        """Write ``index.json``, which says where the collection is, to a folder. An index already there is replaced.

        Raises:
            MmclError: ``folder`` is a file, or a folder that holds something other than an index.
        """
        folder = check_free(folder)
        uri = self._about["uri"]
        if is_local(uri) and Path(uri).is_relative_to(folder):
            raise MmclError(
                f"{folder}: {Path(uri).name} lies in it, and would be replaced; choose another --out or --uri"
            )
        beside = {"near": near(folder, self.model), "near_uri": near(folder, uri) if is_local(uri) else None}
        columns = {field.name: str(field.type) for field in self._collection.schema}
        with replaced(folder, self) as new:
            write_description(new / INDEX_FILE, _FORMAT, _VERSION, self._about | beside | {"columns": columns})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Open the collection that a folder names.

        Raises:
            MmclError: not such an index, its server does not answer, or it has the collection no more.
        """
        folder = as_path(folder)
        path = folder / INDEX_FILE
        about = validated(_About, read_description(path, _FORMAT, _VERSION, _REBUILD), path, _REBUILD).model_dump()
        if unknown := [kind for kind in about["columns"].values() if kind not in _TYPES]:
            raise MmclError(f"{path}: damaged, 'columns' has the type '{unknown[0]}'; {_REBUILD}")
        schema = pa.schema([(name, _TYPES[kind]) for name, kind in about.pop("columns").items()])
        about["model"] = found_model(folder, about["model"], about.pop("near"))
        about["uri"] = found_model(folder, about["uri"], about.pop("near_uri"))
        if is_local(about["uri"]) and not Path(about["uri"]).exists():
            raise MmclError(f"{folder}: the vectors are no longer in {about['uri']}; {_REBUILD}")
        index = cls(about, schema)
        if not index._collection.open():
            raise MmclError(f"{folder}: {about['uri']} has no collection '{about['collection']}' any more; {_REBUILD}")
        return index

    @property
    def _id_type(self) -> pa.DataType:
        return self._collection.schema.field("id").type

    def _condition(self, where: str | None) -> str:
        """What Milvus reads of a condition; of none, nothing."""
        if where is None:
            return ""
        return expression(where, self._collection.schema, self._collection.fields, lite=is_local(self._about["uri"]))

    def _fitting(self, vectors: Any, ids: Ids, columns: MetaColumns | None) -> tuple[VectorShards, pa.Table]:
        """New vectors, ids and columns as those that are there."""
        shards = as_shards(vectors)
        check_origin(shards, self)
        schema = self._collection.schema
        table = self._nothing().fitting(ids, len(shards), columns)
        for field in schema:
            if table.schema.field(field.name).type != field.type:
                raise MmclError(
                    f"column '{field.name}' holds whole numbers in Milvus, and the new values have fractions; "
                    "build the index anew with all of them"
                )
        for _ in blocks(shards, self.similarity, table):  # all are looked at before one is added
            pass
        return shards, table

    def _write(self, shards: VectorShards, table: pa.Table, show: bool | None = None) -> None:
        """Add vectors, block by block."""
        with progress("write to Milvus", len(shards), "vectors", show) as advance:
            for first, block in blocks(shards, self.similarity, table):
                self._collection.insert(block, table.slice(first, len(block)))
                advance(len(block))
        self._collection.flush()

    def _nothing(self) -> Metadata:
        return Metadata(self._collection.schema.empty_table())

    def _wanted(self, ids: Ids) -> pa.Array:
        return self._nothing().wanted(ids)

    def _known(self, wanted: pa.Array, where: str | None = None, *, vectors: bool = False) -> dict[Any, dict[str, Any]]:
        found = self._collection.first(wanted, self._condition(where), vectors=vectors)
        unknown = [name for name in wanted.to_pylist() if name not in found]
        if unknown:
            example = self._collection.an_example()
            more = f" ({len(unknown):,} such ids)" if len(unknown) > 1 else ""
            such = f"; it has such as {example['id']!r}" if example else ""
            if where is not None:
                raise MmclError(f"no vector of id {unknown[0]!r} fulfils: {where}{more}")
            raise MmclError(f"the index holds no id {unknown[0]!r}{more}{such}")
        return found

    def _distances_are_squared(self) -> bool:
        """Whether the server's Euclidean distances are squared: Milvus' are, Milvus Lite's are not."""
        if self._squared is None:
            example = self._collection.an_example()
            assert example is not None, "something has been found"
            there = np.array(example["vector"], np.float32)[None]
            there[0, 0] += 2
            hits = next(self._collection.search(there, 1, "euclidean", f"pk == {example['pk']}"))
            self._squared = abs(hits[0][1] - 4) < abs(hits[0][1] - 2)
        return self._squared


def _together(table: pa.Table, labels: Sequence[str | None] | None, columns: MetaColumns | None) -> dict[str, Any]:
    """The columns beside the ids, of which those given replace those of the vectors."""
    found = {name: table[name] for name in table.column_names if name != "id"}
    if labels is not None:
        found["label"] = labels
    if isinstance(columns, pa.Table):
        columns = dict(zip(columns.column_names, columns.columns, strict=True))
    return found | dict(columns or {})


def _parsed(spec: str) -> tuple[str, dict[str, Any]]:
    """Kind and parameters of an index: ``HNSW,M=16`` is HNSW with M of 16."""
    if spec == "auto":
        return "AUTOINDEX", {}
    kind, *rest = (part.strip() for part in spec.split(","))
    parameters: dict[str, Any] = {}
    for part in rest:
        name, _, value = part.partition("=")
        if not name or not value:
            raise MmclError(f"spec '{spec}': '{part}' is no parameter; write it as HNSW,M=16,efConstruction=200")
        parameters[name.strip()] = int(value) if value.strip().isdigit() else value.strip()
    if kind.upper() not in _KINDS:
        raise MmclError(
            f"spec '{spec}': '{kind.upper()}' is no kind of index in Milvus; {nearest(kind.upper(), _KINDS)}"
        )
    return kind.upper(), parameters
