"""Vectors on disk, as ``VectorWriter`` writes them: ``.npy`` shards with their ids, and a manifest."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmcl.encoding.corpora.array_access import ArrayAccess
from mmcl.encoding.corpora.changes import COLUMNS as OF_FILES
from mmcl.encoding.corpora.folder import REJECTS, read_rejects
from mmcl.encoding.corpora.manifest import (
    AGAIN,
    ENCODE,
    check_shard,
    read_manifest,
    sound_file,
    with_described,
)
from mmcl.encoding.corpora.stored import found_model, id_table, read_table, to_numpy
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import as_path

_MANY = 64  # vectors that are gathered, each with the pages around it
SPAN = ("start", "end")
"""The columns, beside the ids, of windows of long texts: the characters of the text that each window has."""


class Vectors(ArrayAccess):
    """Vectors on disk, memory-mapped: opening a folder reads its manifest only. Made by :func:`open_vectors`.

    Whatever reads a whole shard, or the ids, compares it with the manifest's SHA-256 the first time; to gather single
    vectors reads no more than these.

    Attributes:
        folder: where they are.
        dim: components of a vector.
        dtype: ``float32``, ``float16`` or ``int8`` on disk; an int8 vector has a scale beside it.
        model: name or folder of the encoder, if known.
        encoder: its ``stored.CorpusFingerprint``; None in folders of an older mmcl.
        source: what they come from.
        skipped: ``count`` of the things that got no vector, and ``rows``, the first 1,000 with row, id and reason.
        truncated: how many texts were longer than the model reads and were cut; None if that was not counted.
        complete: False while an encode is under way or interrupted.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.dim: int = manifest["dim"]
        self.dtype = np.dtype(manifest["dtype"])
        self.model: str | None = found_model(folder, manifest["model"], manifest["near"])
        self.source: dict[str, Any] = manifest["source"]
        self.encoder: dict[str, Any] | None = _with_documents(manifest["encoder"], self.source)
        self.skipped: dict[str, Any] = manifest["skipped"]
        self.truncated: int | None = manifest["truncated"]
        self.complete: bool = manifest["complete"]
        self._shards: list[dict[str, Any]] = manifest["shards"]
        self._ends = np.cumsum([shard["rows"] for shard in self._shards], dtype=np.int64)
        self._maps: dict[tuple[int, str], np.ndarray] = {}
        self._sound: set[tuple[int, str]] = set()  # files whose checksum has been compared

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __repr__(self) -> str:
        return f"Vectors({str(self.folder)!r}, {len(self):,} × {self.dim} {self.dtype})"

    @property
    def checksum(self) -> str:
        """Equal for equal vectors with equal ids, as the manifest records them."""
        files = [sorted(shard["files"].items()) for shard in self._shards]
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()

    def table(self) -> pa.Table:
        """An Arrow table of N rows: the column ``id`` and, if there are any, ``label``; of windows of long texts, the
        characters ``start`` and ``end`` between which each stands in its text; and other columns of metadata."""
        tables = [self._table(number) for number in range(len(self._shards))]
        table = pa.concat_tables(tables) if tables else id_table([], 0)
        return table.select([name for name in table.column_names if name not in OF_FILES])

    def rejects(self) -> Iterator[dict[str, Any]]:
        """Everything in the source that has no vector: ``row``, ``id`` and ``reason``. A folder of an older mmcl, or of
        an encode that is not finished, lists the first 1,000."""
        path = self.folder / REJECTS
        if not self.complete or not path.exists():
            yield from self.skipped["rows"]
            return
        yield from read_rejects(self.folder)

    def iter_shards(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids (n,) and memory-mapped vectors (n, D) of each shard in order, in their dtype on disk; of int8, as float32
        in memory.

        Raises:
            MmclError: naming the file that is damaged.
        """
        for number in range(len(self._shards)):
            yield self.shard(number)
            let_go(self._map(number))

    def shard(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and vectors of one shard, as :meth:`iter_shards` gives them."""
        codes, scales = self._map(number, verified=True), self._scales(number, verified=True)
        return to_numpy(self._table(number)["id"]), codes if scales is None else codes * scales[:, None]

    def take(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The vectors at these positions, in this order, as float32 (n, D).

        Raises:
            IndexError: a position outside [0, N).
            MmclError: naming the file that is damaged, of a shard that is read whole.
        """
        positions = np.asarray(indices, dtype=np.int64)
        if positions.size and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(
                f"positions {positions.min()} to {positions.max()} asked for, there are {len(self)} vectors"
            )
        result = np.empty((len(positions), self.dim), np.float32)
        numbers = np.searchsorted(self._ends, positions, side="right")
        for number in np.unique(numbers):
            here = numbers == number
            rows = self._shards[number]["rows"]
            verified, places = bool(here.sum() >= rows), positions[here] - (self._ends[number] - rows)
            result[here] = self._map(int(number), verified=verified)[places]
            if (scales := self._scales(int(number), verified=verified)) is not None:
                result[here] *= scales[places, None]
            if here.sum() >= _MANY:
                let_go(self._map(int(number)))
        return result

    def verify(self) -> None:
        """Read everything and compare it with the manifest's checksums and shapes.

        Raises:
            MmclError: naming the file that is damaged or missing.
        """
        self._sound.clear()
        for number in range(len(self._shards)):
            self._map(number, verified=True)
            self._scales(number, verified=True)
            self._table(number)

    def _check(self, number: int, kind: str) -> None:
        if (number, kind) not in self._sound:
            sound_file(self.folder, self._shards[number], kind)
            self._sound.add((number, kind))

    def _map(self, number: int, *, verified: bool = False) -> np.ndarray:
        return self._array(number, "npy", (self._shards[number]["rows"], self.dim), self.dtype, verified)

    def _scales(self, number: int, *, verified: bool = False) -> np.ndarray | None:
        if self.dtype != np.int8:
            return None
        return self._array(number, "scales.npy", (self._shards[number]["rows"],), np.dtype(np.float32), verified)

    def _array(self, number: int, kind: str, shape: tuple[int, ...], dtype: np.dtype, verified: bool) -> np.ndarray:
        if verified:
            self._check(number, kind)
        if (number, kind) not in self._maps:
            path = self.folder / f"{self._shards[number]['name']}.{kind}"
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except Exception as error:  # what a damaged header raises is of many kinds
                raise MmclError(
                    f"{path}: cannot be read ({str(error) or type(error).__name__:.200}); {AGAIN}"
                ) from None
            if array.shape != shape or array.dtype != dtype:
                raise MmclError(
                    f"{path}: holds {array.shape} {array.dtype}, the manifest says {shape} {dtype}; {AGAIN}"
                )
            self._maps[number, kind] = array
        return self._maps[number, kind]

    def _table(self, number: int) -> pa.Table:
        shard = self._shards[number]
        path = self.folder / f"{shard['name']}.ids.parquet"
        self._check(number, "ids.parquet")
        table = read_table(path)
        if len(table) != shard["rows"]:
            raise MmclError(f"{path}: holds {len(table):,} ids, the manifest says {shard['rows']:,}; {AGAIN}")
        return table


def let_go(array: np.ndarray) -> None:
    """Take the pages of a memory-mapped array off this process's memory, which else grows to all that was ever read;
    read again, they come from the system's cache. Nothing happens to another array."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def open_vectors(folder: str | Path, *, partial: bool = False) -> Vectors:
    """Open vectors that :class:`VectorWriter` wrote.

    Args:
        folder: where they are.
        partial: accept an encode that is not finished, of which the listed shards are read.

    Raises:
        MmclError: no vectors there, not finished, damaged, a shard missing or of another size, or written by a newer
            mmcl.
    """
    folder = as_path(folder)
    manifest = read_manifest(folder, ENCODE)
    if not manifest["complete"]:
        manifest = with_described(folder, manifest)
    vectors = Vectors(folder, manifest)
    for shard in manifest["shards"]:
        check_shard(folder, shard)
    if not vectors.complete and not partial:
        raise MmclError(
            f"{folder}: not finished, {len(vectors):,} vectors so far; give the same encode command again to go on"
        )
    return vectors


def _with_documents(encoder: dict[str, Any] | None, source: dict[str, Any]) -> dict[str, Any] | None:
    """The fingerprint of the encoder with what it put before every text, where the source is of texts."""
    if encoder is None or source.get("modality") != "text":
        return encoder
    return encoder | {"documents": source.get("prompt", "")}
