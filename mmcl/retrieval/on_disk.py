"""An exact index over vectors that stay on disk, however many there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self

import numpy as np
import pyarrow as pa
from pydantic import Field

from mmcl.encoding import FileVectors, Vectors, open_vectors
from mmcl.encoding.corpora.stored import (
    CorpusFingerprint,
    FileRecord,
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
from mmcl.retrieval.exact import exact_search
from mmcl.retrieval.filters import kind_of, matching
from mmcl.retrieval.index import INDEX_FILE, Hits, Ids, MetaColumns, check_free, replaced
from mmcl.retrieval.inputs import asked_for, check_similarity
from mmcl.retrieval.metadata import Metadata, with_columns
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import as_path

_FORMAT, _VERSION = "mmcl index", 2
_REBUILD = "build it with: mmcl index build VECTORS --to disk --out INDEX"
_TABLE = "ids.parquet"


class _About(Stored):
    engine: Literal["disk"]
    vectors: str
    near_vectors: str
    similarity: Similarity
    dim: Annotated[int, Field(ge=1)]
    count: Annotated[int, Field(ge=1)]
    checksum: str | None = None
    model: str | None
    near: str | None = None
    encoder: CorpusFingerprint | None = None
    files: dict[str, FileRecord]


class DiskIndex:
    """Every search reads the vectors from disk, block by block, the next one while one is searched by all cores, and is
    exact (:func:`mmcl.retrieval.exact.exact_search`). Nothing is built, and memory holds ids and metadata alone.

    Many queries at once cost little more than one. The index changes with its vectors: ``add``, ``remove`` and
    ``upsert`` are refused.

    Attributes:
        dim, similarity, model, encoder: as of :class:`~mmcl.retrieval.index.VectorIndex`.
    """

    def __init__(self, stored: Vectors | FileVectors, metadata: Metadata, about: dict[str, Any]) -> None:
        self._vectors, self._metadata, self._about = stored, metadata, about
        self.dim: int = about["dim"]
        self.similarity: Similarity = about["similarity"]
        self.model: str | None = about["model"]
        self.encoder: dict[str, str] | None = about["encoder"]

    def __len__(self) -> int:
        return len(self._vectors)

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
    ) -> Self:
        """An index over vectors on disk (:func:`mmcl.encoding.open_vectors`), as they are there.

        Args:
            vectors, ids, similarity, model, columns, labels: as of :class:`~mmcl.retrieval.index.VectorIndex`.
            spec, recall, memory, show_progress: there is nothing to choose or to wait for.

        Raises:
            MmclError: the vectors are not on disk, there are none, or ids or columns do not fit.
        """
        check_similarity(similarity)
        if not isinstance(vectors, Vectors | FileVectors):
            raise MmclError("an index on disk is over vectors on disk; open them with mmcl.encoding.open_vectors(path)")
        if not len(vectors):
            raise MmclError(f"{vectors.folder}: holds no vectors to index")
        table = vectors.table() if ids is None else id_table(ids, len(vectors))
        beside = {name: table[name] for name in table.column_names if name != "id"}
        given = {name: columns[name] for name in columns.column_names} if isinstance(columns, pa.Table) else columns
        named = {} if labels is None else {"label": labels}
        table = with_columns(table.select(["id"]), beside | named | dict(given or {}))
        about = {
            "engine": "disk",
            "vectors": str(vectors.folder.absolute()),
            "similarity": similarity,
            "dim": vectors.dim,
            "count": len(vectors),
            "checksum": _checksum(vectors),
            "model": model if model is not None else vectors.model,
            "encoder": vectors.encoder if model in (None, vectors.model) else None,
        }
        return cls(vectors, Metadata(table), about)

    def search(self, queries: Any, k: int = 10, *, where: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar vectors for each query, best first; of equal ones the first. See
        :class:`~mmcl.retrieval.index.VectorIndex`."""
        positions, scores = self._found(queries, k, where)
        return self._ids_at(positions), scores

    def hits(self, queries: Any, k: int = 10, *, where: str | None = None) -> Hits:
        """What :meth:`search` finds, with the metadata of each vector found."""
        positions, scores = self._found(queries, k, where)
        return Hits(self._ids_at(positions), scores, self._metadata.at(positions.ravel()))

    def _found(self, queries: Any, k: int, where: str | None) -> tuple[np.ndarray, np.ndarray]:
        """Positions and scores."""
        queries = asked_for(queries, k, self.dim, self.similarity, self.model)
        corpus: Any = self._vectors
        if where is not None:
            corpus = _Selected(self._vectors, np.flatnonzero(matching(self._metadata.table, where)))
        positions, scores = exact_search(queries, corpus, int(k), similarity=self.similarity)
        if where is not None:
            positions = corpus.positions[positions]
        return positions, scores

    def _ids_at(self, positions: np.ndarray) -> np.ndarray:
        return to_numpy(self._metadata.ids.take(pa.array(positions.ravel()))).reshape(positions.shape)

    def add(self, vectors: Any, ids: Ids, *, columns: MetaColumns | None = None) -> None:
        """Refused."""
        self._refuse()

    def remove(self, ids: Ids) -> None:
        """Refused."""
        self._refuse()

    def upsert(self, vectors: Any, ids: Ids, *, columns: MetaColumns | None = None) -> None:
        """Refused."""
        self._refuse()

    def has(self, ids: Ids, *, where: str | None = None) -> np.ndarray:
        """(n,) bool: of which of these ids there is a vector, whose metadata fulfils ``where``."""
        return self._metadata.positions(ids, where) >= 0

    def rows(self, ids: Ids, *, where: str | None = None) -> pa.Table:
        """Metadata of these ids, a row each, of the first vector of an id which fulfils ``where``. Raises ``MmclError``
        for an id without."""
        return self._metadata.table.take(pa.array(self._metadata.known(ids, where)))

    def vectors(self, ids: Ids) -> np.ndarray:
        """(N, D) float32 vectors of these ids. Raises ``MmclError`` for an unknown id."""
        return self._vectors.take(self._metadata.known(ids))

    def info(self) -> dict[str, Any]:
        """Where the vectors are, how many, their model and the columns."""
        schema = self._metadata.table.schema
        columns = {name: kind_of(schema.field(name).type) for name in self._metadata.columns}
        return self._about | {"ids": self._metadata.kind, "labels": "label" in schema.names, "columns": columns}

    def save(self, folder: str | Path) -> None:
        """Write ids, metadata, and where the vectors are, to a folder, completely or not at all.

        Raises:
            MmclError: ``folder`` is a file, or a folder that holds something other than an index.
        """
        folder = check_free(folder)
        beside = {"near": near(folder, self.model), "near_vectors": near(folder, self._about["vectors"])}
        with replaced(folder, self) as new:
            write_table(new / _TABLE, self._metadata.table)
            files = {_TABLE: file_record(new / _TABLE)}
            write_description(new / INDEX_FILE, _FORMAT, _VERSION, self._about | beside | {"files": files})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Open the vectors that a folder names.

        Raises:
            MmclError: not such an index, damaged, or its vectors are gone or others now.
        """
        folder = as_path(folder)
        path = folder / INDEX_FILE
        about = validated(_About, read_description(path, _FORMAT, _VERSION, _REBUILD), path, _REBUILD).model_dump()
        if _TABLE not in (files := about.pop("files")):
            raise MmclError(f"{path}: damaged, '{_TABLE}' is not among its files; {_REBUILD}")
        check_file(folder / _TABLE, files[_TABLE], checksum=True, cure=_REBUILD)
        about["model"] = found_model(folder, about["model"], about.pop("near"))
        about["vectors"] = found_model(folder, about["vectors"], about.pop("near_vectors"))
        stored, table = open_vectors(about["vectors"]), read_table(folder / _TABLE)
        same = (len(stored), stored.dim) == (about["count"], about["dim"]) and len(table) == len(stored)
        if not same or (None not in (about["checksum"], _checksum(stored)) and about["checksum"] != _checksum(stored)):
            raise MmclError(
                f"{folder}: the vectors in {about['vectors']} are others than those it was built of; {_REBUILD}"
            )
        return cls(stored, Metadata(table), about)

    def _refuse(self) -> NoReturn:
        raise MmclError(
            f"an index over vectors on disk changes with these: write them to {self._about['vectors']} anew, or "
            "`mmcl vectors merge` them with others, and build the index again"
        )


def _checksum(stored: Vectors | FileVectors) -> str | None:
    """Of the vectors and their ids; of other programs' files it is not known without reading all of them."""
    return stored.checksum if isinstance(stored, Vectors) else None


class _Selected:
    """Some of the vectors on disk, in their order."""

    def __init__(self, stored: Vectors | FileVectors, positions: np.ndarray) -> None:
        self._vectors, self.positions, self.dim = stored, positions, stored.dim
        self.folder = f"{stored.folder}, of what fulfils the condition"

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, indices: np.ndarray) -> np.ndarray:
        return self._vectors.take(self.positions[indices])

    def iter_shards(self) -> Iterator[tuple[None, np.ndarray]]:
        yield None, self.take(np.arange(len(self)))
