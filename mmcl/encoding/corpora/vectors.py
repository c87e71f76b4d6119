"""Vectors on disk, as ``VectorWriter`` writes them: ``.npy`` shards with their ids, and a manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmcl.encoding.corpora.manifest import AGAIN, ENCODE, check_shard, read_manifest, sound_file
from mmcl.encoding.corpora.stored import found_model, id_table, read_table, to_numpy
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import as_path


class Vectors:
    """Vectors on disk, memory-mapped: opening a folder reads its manifest only. Made by :func:`open_vectors`.

    Whatever reads a whole shard, or the ids, compares it with the manifest's SHA-256 the first time; to gather single
    vectors reads no more than these.

    Attributes:
        folder: where they are.
        dim: components of a vector.
        dtype: ``float32`` or ``float16`` on disk.
        model: name or folder of the encoder, if known.
        encoder: its ``stored.Fingerprint``; None in folders of an older mmcl.
        source: what they come from.
        skipped: ``count`` of the things that got no vector, and ``rows``, the first 1,000 with row, id and reason.
        complete: False while an encode is under way or interrupted.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.dim: int = manifest["dim"]
        self.dtype = np.dtype(manifest["dtype"])
        self.model: str | None = found_model(folder, manifest["model"], manifest["near"])
        self.encoder: dict[str, str] | None = manifest["encoder"]
        self.source: dict[str, Any] = manifest["source"]
        self.skipped: dict[str, Any] = manifest["skipped"]
        self.complete: bool = manifest["complete"]
        self._shards: list[dict[str, Any]] = manifest["shards"]
        self._ends = np.cumsum([shard["rows"] for shard in self._shards], dtype=np.int64)
        self._maps: dict[int, np.ndarray] = {}
        self._sound: set[tuple[int, str]] = set()  # files whose checksum has been compared

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __repr__(self) -> str:
        return f"Vectors({str(self.folder)!r}, {len(self):,} × {self.dim} {self.dtype})"

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return len(self), self.dim

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All vectors in memory, (N, D) float32 unless another dtype is asked for."""
        if copy is False:
            raise ValueError("vectors on disk cannot become an array without a copy")
        return self.take(range(len(self))).astype(dtype or np.float32, copy=False)

    def __getitem__(self, index: Any) -> np.ndarray:
        """float32: (D,) for a position, which may count from the end; (n, D) for a slice, positions, or (N,) bool."""
        positions = np.arange(len(self))[index]
        return self.take(np.atleast_1d(positions))[0] if positions.ndim == 0 else self.take(positions)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Every vector, (D,) float32, in order."""
        for _, shard in self.iter_shards():
            for vector in shard:
                yield np.array(vector, np.float32)

    def ids(self) -> np.ndarray:
        """The id of every vector, (N,) int64 or object array of strings."""
        return to_numpy(self.table()["id"])

    def table(self) -> pa.Table:
        """An Arrow table of N rows: the column ``id`` and, if there are any, ``label``."""
        tables = [self._table(number) for number in range(len(self._shards))]
        table = pa.concat_tables(tables) if tables else id_table([], 0)
        return table.select([name for name in ("id", "label") if name in table.column_names])

    def iter_shards(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids (n,) and memory-mapped vectors (n, D), in their dtype on disk, of each shard in order.

        Raises:
            MmclError: naming the file that is damaged.
        """
        for number in range(len(self._shards)):
            yield to_numpy(self._table(number)["id"]), self._map(number, verified=True)

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
            vectors = self._map(int(number), verified=bool(here.sum() >= rows))
            result[here] = vectors[positions[here] - (self._ends[number] - rows)]
        return result

    def verify(self) -> None:
        """Read everything and compare it with the manifest's checksums and shapes.

        Raises:
            MmclError: naming the file that is damaged or missing.
        """
        self._sound.clear()
        for number in range(len(self._shards)):
            self._map(number, verified=True)
            self._table(number)

    def _check(self, number: int, kind: str) -> None:
        if (number, kind) not in self._sound:
            sound_file(self.folder, self._shards[number], kind)
            self._sound.add((number, kind))

    def _map(self, number: int, *, verified: bool = False) -> np.ndarray:
        if verified:
            self._check(number, "npy")
        if number not in self._maps:
            shard = self._shards[number]
            path = self.folder / f"{shard['name']}.npy"
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except Exception as error:  # what a damaged header raises is of many kinds
                raise MmclError(
                    f"{path}: cannot be read ({str(error) or type(error).__name__:.200}); {AGAIN}"
                ) from None
            if array.shape != (shard["rows"], self.dim) or array.dtype != self.dtype:
                raise MmclError(
                    f"{path}: holds {array.shape} {array.dtype}, the manifest says "
                    f"({shard['rows']}, {self.dim}) {self.dtype}; {AGAIN}"
                )
            self._maps[number] = array
        return self._maps[number]

    def _table(self, number: int) -> pa.Table:
        shard = self._shards[number]
        path = self.folder / f"{shard['name']}.ids.parquet"
        self._check(number, "ids.parquet")
        table = read_table(path)
        if len(table) != shard["rows"]:
            raise MmclError(f"{path}: holds {len(table):,} ids, the manifest says {shard['rows']:,}; {AGAIN}")
        return table


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
    vectors = Vectors(folder, manifest)
    for shard in manifest["shards"]:
        check_shard(folder, shard)
    if not vectors.complete and not partial:
        raise MmclError(
            f"{folder}: not finished, {len(vectors):,} vectors so far; give the same encode command again to go on"
        )
    return vectors
