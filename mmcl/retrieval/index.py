"""What an index of vectors is, whatever library searches it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypeAlias

import numpy as np
import pyarrow as pa

from mmcl.encoding.corpora.stored import same_origin
from mmcl.losses.logits.similarity import Similarity
from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.files import as_path, atomic_folder, folder_to_write, read_json
from mmcl.runtime.lock import exclusive
from mmcl.runtime.registry import Registry

Ids = Sequence[int] | Sequence[str] | np.ndarray
"""Integers or strings, one a vector."""
MetaColumns: TypeAlias = Mapping[str, Any] | pa.Table
"""Metadata beside the vectors: {name: N values}, or an Arrow table of N rows."""
INDEX_FILE = "index.json"
"""The file that describes an index, in its folder."""
LEXICAL, FUSION = "lexical", "fusion.json"
"""What may lie beside an index in its folder: the words of its things, and how hybrid searches fuse."""


class Hits(NamedTuple):
    """What a search found for Q queries, best first.

    Attributes:
        ids: (Q, k).
        scores: (Q, k) float32; the higher, the more similar.
        rows: metadata of each hit, Q·k rows, query by query: ``id``, ``label`` if there are any, and other columns; of
            several vectors of an id, that of the one found. Empty where a search reached nothing more.
    """

    ids: np.ndarray
    scores: np.ndarray
    rows: pa.Table


class VectorIndex(Protocol):
    """Vectors that answer which of them are most similar to a query, whatever engine holds and searches them.

    An implementation is found by name: it is registered in the entry-point group ``mmcl.indexes``, and ``index.json``
    of the folder that it saves names it as ``engine``; :func:`open_index` opens such a folder.

    Attributes:
        dim: components of a vector.
        similarity: what the scores are; the higher is the more similar, of ``euclidean`` the negative distance.
        model: name or folder of the encoder whose vectors these are, if known.
        encoder: its fingerprint, see :class:`mmcl.encoding.corpora.stored.Fingerprint`, if known.
    """

    dim: int
    similarity: Similarity
    model: str | None
    encoder: dict[str, str] | None

    def __len__(self) -> int: ...

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
        """An index of (N, D) vectors, in memory or on disk (:class:`VectorShards`).

        Args:
            vectors: N vectors.
            ids: N integers or N strings, returned by a search; the vectors' own, else 0 … N-1. Equal ids are allowed.
            spec: how it is built, in the engine's own words; ``auto`` leaves it to the engine.
            similarity: ``cosine``, ``dot`` or ``euclidean``.
            model: name or folder of the encoder, to embed queries with; the vectors' own by default.
            columns: metadata, N values of a name, which ``where`` of a search can ask for.
            labels: what to show for each vector; they become the column ``label``.
            recall: share of the ten nearest that a search is to find.
            memory: bytes that the index may take; None if that is no matter.
            show_progress: a bar on stderr; None shows it on a terminal.
        """

    def search(self, queries: Any, k: int = 10, *, where: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Ids (Q, k) and scores (Q, k) float32 of the k most similar vectors for each of (Q, D) queries, best first.

        Fewer come back where the index, or what ``where`` leaves of it, holds fewer; where a search reaches fewer, the
        places left have score -inf. ``where`` is a condition on the metadata, see :mod:`mmcl.retrieval.filters`.
        """

    def hits(self, queries: Any, k: int = 10, *, where: str | None = None) -> Hits:
        """What :meth:`search` finds, with the metadata of each vector found."""

    def add(self, vectors: Any, ids: Ids, *, columns: MetaColumns | None = None) -> None:
        """Add (N, D) vectors under N ids, with the same columns of metadata as the vectors that are there."""

    def remove(self, ids: Ids) -> None:
        """Remove every vector of these ids. Raises ``MmclError``, and removes nothing, if there is none of one."""

    def upsert(self, vectors: Any, ids: Ids, *, columns: MetaColumns | None = None) -> None:
        """Add vectors in the place of those of the same ids, if there are any."""

    def has(self, ids: Ids, *, where: str | None = None) -> np.ndarray:
        """(n,) bool: of which of these ids there is a vector, whose metadata fulfils ``where``."""

    def rows(self, ids: Ids, *, where: str | None = None) -> pa.Table:
        """Metadata of these ids, a row each, in their order: ``id``, ``label`` if there are any, and other columns; of
        several vectors of an id, that of the first which fulfils ``where``. Raises ``MmclError`` for an id without."""

    def vectors(self, ids: Ids) -> np.ndarray:
        """(N, D) float32 vectors of these ids as the index holds them, of several of an id the first. Raises
        ``MmclError`` for an unknown id."""

    def info(self) -> dict[str, Any]:
        """What the index holds and how it was built, in values that JSON can hold."""

    def save(self, folder: str | Path) -> None:
        """Write the index to a folder, completely or not at all."""

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what :meth:`save` wrote."""


INDEXES: Registry[type[VectorIndex]] = Registry(
    "mmcl.indexes",
    "index engine",
    {
        "faiss": "mmcl.retrieval.faiss.index:Index",
        "milvus": "mmcl.retrieval.milvus.index:MilvusIndex",
        "disk": "mmcl.retrieval.on_disk:DiskIndex",
    },
)
"""Implementations of :class:`VectorIndex` by name."""


def open_index(folder: str | Path) -> VectorIndex:
    """Open the index in a folder, whatever engine wrote it.

    Raises:
        MmclError: there is none, it is damaged, its engine is not installed, or a newer mmcl wrote it.
    """
    path = as_path(folder) / INDEX_FILE
    engine = read_json(path).get("engine", "faiss") if path.is_file() else "faiss"  # whose load says what is missing
    if not isinstance(engine, str) or engine not in INDEXES:
        known = nearest(str(engine), INDEXES)
        raise MmclError(f"{path}: its engine is '{engine}', which is not installed; {known}")
    return INDEXES[engine].load(folder)


def check_free(folder: str | Path) -> Path:
    """The absolute path of a folder that an index may be written to. Raises ``MmclError`` if it may not."""
    folder_to_write(folder)
    folder = as_path(folder).absolute()
    if folder.exists() and not (folder / INDEX_FILE).exists() and any(folder.iterdir()):
        raise MmclError(f"{folder}: exists and is no index, so it is not replaced; choose another folder")
    return folder


@contextmanager
def replaced(folder: Path, index: VectorIndex) -> Iterator[Path]:
    """A new folder for an index, which takes the place of ``folder`` if the block ends without an error. What lies
    beside an index of the same model there stays."""
    with atomic_folder(folder) as new:
        yield new
        old: dict[str, Any] = {}
        with suppress(MmclError):  # one that is damaged is replaced with all that lies there
            old = read_json(folder / INDEX_FILE)
        encoder = old.get("encoder")
        if old and not known_to_differ(old.get("model"), encoder if isinstance(encoder, dict) else None, index):
            for name in (LEXICAL, FUSION):
                if (folder / name).is_dir():
                    shutil.copytree(folder / name, new / name, copy_function=_link_or_copy)
                elif (folder / name).exists():
                    _link_or_copy(folder / name, new / name)


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # of a file system without links
        shutil.copy2(source, target)


@contextmanager
def changing(folder: str | Path) -> Iterator[VectorIndex]:
    """The index in a folder, which is saved there again at the end of a block that raises nothing.

    Raises:
        MmclError: as :func:`open_index`; or another process is changing the index.
    """
    path = as_path(folder).absolute()
    with _alone(path):
        index = open_index(path)
        yield index
        index.save(path)


def save_alone(index: VectorIndex, folder: str | Path) -> None:
    """Save an index that is new, after whatever is changing the one in its folder: it would be overwritten by that."""
    path = as_path(folder).absolute()
    with _alone(path, wait=True):
        index.save(path)


@contextmanager
def _alone(path: Path, *, wait: bool = False) -> Iterator[None]:
    lock = path.with_name(f".{path.name}.changing")
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(lock, "changing an index by", wait=wait))
        except MmclError:
            raise MmclError(f"{path}: another process is changing this index; wait until it has ended") from None
        yield
    with suppress(OSError):  # left by a process that was killed
        lock.rmdir()


def known_to_differ(model: str | None, encoder: Mapping[str, Any] | None, index: VectorIndex) -> bool:
    """Whether it is known that a model, by its name and fingerprint, is another than that of an index."""
    if encoder is not None and index.encoder is not None:
        return not same_origin(encoder, index.encoder)
    return None not in (model, index.model) and model != index.model


class VectorShards(Protocol):
    """Vectors too many for memory, as `mmcl.encoding.open_vectors` gives them."""

    @property
    def dim(self) -> int: ...
    @property
    def model(self) -> str | None: ...
    def __len__(self) -> int: ...
    def table(self) -> pa.Table:
        """The columns ``id`` and, perhaps, ``label`` and others of metadata."""

    def iter_shards(self) -> Iterator[tuple[Any, np.ndarray]]:
        """Ids and (n, D) array of each shard, in order."""

    def take(self, indices: np.ndarray) -> np.ndarray:
        """The (n, D) float32 vectors at these positions."""
