"""Vectors on disk: ``.npy`` shards with their ids, and a manifest that says which shards there are.

The manifest is the single truth. It is replaced, whole, after every shard; a shard it does not list does not exist.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from mmcl.retrieval.stored import (
    check_file,
    file_record,
    id_table,
    read_description,
    read_table,
    to_numpy,
    write_description,
    write_table,
)
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import atomic_file
from mmcl.runtime.lock import entries

_FORMAT, _VERSION = "mmcl vectors", 1
_MANIFEST = "manifest.json"
_ENCODE = "make it with: mmcl encode MODEL INPUT --out DIR"
_AGAIN = "delete the folder and encode again"
_LISTED = 1_000

Stored = Literal["float32", "float16"]
_DTYPES = get_args(Stored)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Record(_Strict):
    bytes: int
    sha256: str


class _Shard(_Strict):
    name: str
    rows: int
    rows_done: int
    files: dict[str, _Record]


class _SkippedRow(_Strict):
    row: int
    id: int | str
    reason: str


class _Skipped(_Strict):
    count: int
    rows: list[_SkippedRow]


class _Manifest(_Strict):
    model: str | None
    dim: int
    dtype: Stored
    source: dict[str, Any]
    count: int
    complete: bool
    skipped: _Skipped
    shards: list[_Shard]


class VectorWriter:
    """Writes vectors shard by shard; an interrupted writer's folder is continued by the next with the same arguments.

    As a context manager it finishes the folder, or, on an error, leaves the shards already listed.

    Args:
        folder: where to; new, empty, or left by a writer with equal ``dim``, ``model``, ``dtype`` and ``source``.
        dim: components of a vector.
        model: name or folder of the encoder.
        dtype: ``float32`` or ``float16`` on disk.
        source: what the vectors come from, as JSON values that tell it from another source; ``name`` is only shown.
        shard_rows: a shard is closed by the block that brings it to this many vectors; a block is never split.
        resume: continue such a folder; if False, only a new or empty one is accepted.

    Attributes:
        rows_done: rows of the source that the listed shards account for; go on with this one.
        count: vectors in listed shards.
        complete: the folder was finished before.

    Raises:
        MmclError: the folder holds something else, or vectors of another model, dimension, dtype or source.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        dim: int,
        model: str | None,
        dtype: Stored = "float32",
        source: dict[str, Any] | None = None,
        shard_rows: int = 100_000,
        resume: bool = True,
    ) -> None:
        if dtype not in _DTYPES:
            raise MmclError(f"vectors are stored as float32 or float16, not '{dtype}'")
        if shard_rows < 1:
            raise MmclError(f"shard_rows is {shard_rows}; it must be 1 or more")
        self.folder = Path(folder).expanduser()
        self._dtype = np.dtype(dtype)
        self.shard_rows = shard_rows
        self._manifest: dict[str, Any] = {
            "model": model,
            "dim": dim,
            "dtype": dtype,
            "source": source or {},
            "count": 0,
            "complete": False,
            "skipped": {"count": 0, "rows": []},
            "shards": [],
        }
        self._blocks: list[np.ndarray] = []
        self._tables: list[pa.Table] = []
        self._schema: pa.Schema | None = None
        self.rows_done = 0
        self._open(resume)
        if shards := self._manifest["shards"]:
            self._schema = read_table(self.folder / f"{shards[0]['name']}.ids.parquet").schema
            self.rows_done = shards[-1]["rows_done"]
        self._rows_appended = self.rows_done

    def _open(self, resume: bool) -> None:
        path = self.folder / _MANIFEST
        if not path.exists():
            if self.folder.is_file() or (self.folder.is_dir() and not all(map(_is_leftover, entries(self.folder)))):
                raise MmclError(f"{self.folder}: exists and holds no vectors; choose another --out")
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_unlisted()
            self._write_manifest()
            return
        if not resume:
            raise MmclError(f"{self.folder}: holds vectors already; delete it or choose another --out")
        found = _read_manifest(self.folder, "delete it or choose another --out")
        for key, now, then in _differences(self._manifest, found):
            raise MmclError(
                f"{self.folder}: holds vectors of another {key} ({then!r}, now {now!r}); "
                "delete it or choose another --out"
            )
        self._manifest = found
        for shard in self._manifest["shards"]:
            _check_shard(self.folder, shard, checksum=False)
        self._remove_unlisted()

    @property
    def count(self) -> int:
        return self._manifest["count"]

    @property
    def complete(self) -> bool:
        return self._manifest["complete"]

    @property
    def skipped(self) -> dict[str, Any]:
        """``count`` of the things skipped, and ``rows``, the first 1,000 of them with row, id and reason."""
        return self._manifest["skipped"]

    def append(
        self, ids: Any, vectors: np.ndarray, labels: Sequence[str | None] | None = None, *, rows_done: int | None = None
    ) -> None:
        """Add a block.

        Args:
            ids: n integers or n strings; they need not be unique.
            vectors: (n, D), n ≥ 0.
            labels: n captions or paths to show; in every block or in none.
            rows_done: rows of the source consumed with this block's last; one a vector if left out.

        Raises:
            MmclError: shapes that do not fit, or a vector with NaN, infinity, or a value too large for float16.
            OSError: the disk is full; listed shards stay.
        """
        if self.complete:
            raise MmclError(f"{self.folder}: is complete; write further vectors to another folder")
        if vectors.ndim != 2 or vectors.shape[1] != self._manifest["dim"]:
            raise MmclError(f"{self.folder}: vectors of shape {vectors.shape}, expected (n, {self._manifest['dim']})")
        table = id_table(ids, len(vectors), labels)
        with np.errstate(over="ignore"):
            block = vectors.astype(self._dtype)
        broken = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(broken):
            raise MmclError(
                f"the vector of id {table['id'][int(broken[0])].as_py()!r} holds NaN, infinity, or more than "
                f"{self._dtype} can ({len(broken):,} such in this block)"
            )
        self._rows_appended = self._rows_appended + len(block) if rows_done is None else rows_done
        if len(block):
            self._schema = self._schema or table.schema
            if table.schema != self._schema:
                raise MmclError("ids must all be integers or all strings, and labels given with every block or none")
            self._blocks.append(block)
            self._tables.append(table)
        if sum(map(len, self._blocks)) >= self.shard_rows:
            self._close_shard()

    def skip(self, row: int, id: str, reason: str) -> None:
        """Record something in the source that gets no vector; before the block whose ``rows_done`` passes ``row``."""
        self.skipped["count"] += 1
        if len(self.skipped["rows"]) < _LISTED:
            self.skipped["rows"].append({"row": row, "id": id, "reason": reason})

    def finish(self) -> None:
        """Write the last shard and mark the folder complete."""
        if self.complete:
            return
        if self._blocks:
            self._close_shard()
        self._manifest["complete"] = True
        self._write_manifest()

    def _close_shard(self) -> None:
        shards = self._manifest["shards"]
        name = f"shard-{len(shards):05}"
        rows = sum(map(len, self._blocks))
        try:
            files = self._write_files(name, rows)
            shards.append({"name": name, "rows": rows, "rows_done": self._rows_appended, "files": files})
            self._manifest["count"] += rows
            self._write_manifest()
        except OSError:  # a full disk gets its space back
            self._manifest["shards"] = [shard for shard in shards if shard["name"] != name]
            self._remove_unlisted()
            raise
        self.rows_done = self._rows_appended
        self._blocks, self._tables = [], []

    def _write_files(self, name: str, rows: int) -> dict[str, Any]:
        vectors, ids = self.folder / f"{name}.npy", self.folder / f"{name}.ids.parquet"
        with atomic_file(vectors) as beside, beside.open("wb") as file:
            header = {"descr": self._dtype.str, "fortran_order": False, "shape": (rows, self._manifest["dim"])}
            np.lib.format.write_array_header_1_0(file, header)
            for block in self._blocks:
                file.write(np.ascontiguousarray(block).data)
        with atomic_file(ids) as beside:
            write_table(beside, pa.concat_tables(self._tables).combine_chunks())
        return {path.name: file_record(path) for path in (vectors, ids)}

    def _write_manifest(self) -> None:
        write_description(self.folder / _MANIFEST, _FORMAT, _VERSION, self._manifest)

    def _remove_unlisted(self) -> None:
        """What an interrupted writer left between two manifests."""
        listed = {name for shard in self._manifest["shards"] for name in shard["files"]}
        for path in self.folder.iterdir():
            if path.name not in listed and _is_leftover(path):
                path.unlink()

    def __enter__(self) -> VectorWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.finish()


def _is_leftover(path: Path) -> bool:
    half_written = path.name.startswith((".shard-", f".{_MANIFEST}.")) and path.name.endswith(".part")
    return half_written or (path.name.startswith("shard-") and path.name.endswith((".npy", ".ids.parquet")))


def _differences(now: dict[str, Any], then: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What tells the vectors in a folder from those to be written: key, now, then."""
    for key in ("model", "dim", "dtype"):
        if now[key] != then[key]:
            yield key, now[key], then[key]
    old = then["source"]
    for key in sorted((now["source"].keys() | old.keys()) - {"name"}):
        if now["source"].get(key) != old.get(key):
            yield f"source: {key}", now["source"].get(key), old.get(key)


class Vectors:
    """Vectors on disk, memory-mapped: opening a folder reads its manifest only. Made by :func:`open_vectors`.

    Attributes:
        folder: where they are.
        dim: components of a vector.
        dtype: ``float32`` or ``float16`` on disk.
        model: name or folder of the encoder, if known.
        source: what they come from.
        skipped: ``count`` of the things that got no vector, and ``rows``, the first 1,000 with row, id and reason.
        complete: False while an encode is under way or interrupted.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.dim: int = manifest["dim"]
        self.dtype = np.dtype(manifest["dtype"])
        self.model: str | None = manifest["model"]
        self.source: dict[str, Any] = manifest["source"]
        self.skipped: dict[str, Any] = manifest["skipped"]
        self.complete: bool = manifest["complete"]
        self._shards: list[dict[str, Any]] = manifest["shards"]
        self._ends = np.cumsum([shard["rows"] for shard in self._shards], dtype=np.int64)
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __repr__(self) -> str:
        return f"Vectors({str(self.folder)!r}, {len(self):,} × {self.dim} {self.dtype})"

    def ids(self) -> np.ndarray:
        """The id of every vector, (N,) int64 or object array of strings."""
        return to_numpy(self.table()["id"])

    def table(self) -> pa.Table:
        """An Arrow table of N rows: the column ``id`` and, if there are any, ``label``."""
        tables = [self._table(number) for number in range(len(self._shards))]
        return pa.concat_tables(tables) if tables else id_table([], 0)

    def iter_shards(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids (n,) and memory-mapped vectors (n, D), in their dtype on disk, of each shard in order."""
        for number in range(len(self._shards)):
            yield to_numpy(self._table(number)["id"]), self._map(number)

    def take(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The vectors at these positions, in this order, as float32 (n, D).

        Raises:
            IndexError: a position outside [0, N).
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
            start = self._ends[number] - self._shards[number]["rows"]
            result[here] = self._map(int(number))[positions[here] - start]
        return result

    def verify(self) -> None:
        """Read everything and compare it with the manifest's checksums and shapes.

        Raises:
            MmclError: naming the file that is damaged or missing.
        """
        for number, shard in enumerate(self._shards):
            _check_shard(self.folder, shard, checksum=True)
            self._map(number)
            self._table(number)

    def _map(self, number: int) -> np.ndarray:
        if number not in self._maps:
            shard = self._shards[number]
            path = self.folder / f"{shard['name']}.npy"
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise MmclError(f"{path}: cannot be read ({error}); {_AGAIN}") from None
            if array.shape != (shard["rows"], self.dim) or array.dtype != self.dtype:
                raise MmclError(
                    f"{path}: holds {array.shape} {array.dtype}, the manifest says "
                    f"({shard['rows']}, {self.dim}) {self.dtype}; {_AGAIN}"
                )
            self._maps[number] = array
        return self._maps[number]

    def _table(self, number: int) -> pa.Table:
        shard = self._shards[number]
        path = self.folder / f"{shard['name']}.ids.parquet"
        table = read_table(path)
        if len(table) != shard["rows"]:
            raise MmclError(f"{path}: holds {len(table):,} ids, the manifest says {shard['rows']:,}; {_AGAIN}")
        return table


def open_vectors(folder: str | Path, *, partial: bool = False) -> Vectors:
    """Open vectors that :class:`VectorWriter` wrote.

    Args:
        folder: where they are.
        partial: accept an encode that is not finished, of which the listed shards are seen.

    Raises:
        MmclError: no vectors there, not finished, damaged, a shard missing or of another size, or written by a newer
            mmcl.
    """
    folder = Path(folder).expanduser()
    manifest = _read_manifest(folder, _ENCODE)
    vectors = Vectors(folder, manifest)
    for shard in manifest["shards"]:
        _check_shard(folder, shard, checksum=False)
    if not vectors.complete and not partial:
        raise MmclError(
            f"{folder}: not finished, {len(vectors):,} vectors so far; give the same encode command again to go on"
        )
    return vectors


def _read_manifest(folder: Path, made_by: str) -> dict[str, Any]:
    """The entries of a folder's manifest, all there and each of its kind; the files themselves are not looked at.

    Raises:
        MmclError: there is none, it is damaged, or a newer mmcl wrote it.
    """
    path = folder / _MANIFEST
    try:
        manifest = _Manifest.model_validate(read_description(path, _FORMAT, _VERSION, made_by))
    except ValidationError as error:
        first = error.errors()[0]
        what = "missing" if first["type"] == "missing" else f"{first['input']!r:.40}"
        raise MmclError(f"{path}: damaged, '{'.'.join(map(str, first['loc']))}' is {what}; {_AGAIN}") from None
    for shard in manifest.shards:
        for name in (f"{shard.name}.npy", f"{shard.name}.ids.parquet"):
            if name not in shard.files:
                raise MmclError(f"{path}: damaged, '{name}' is not among the files of its shard; {_AGAIN}")
    if manifest.count != (rows := sum(shard.rows for shard in manifest.shards)):
        raise MmclError(f"{path}: damaged, 'count' is {manifest.count:,}, its shards have {rows:,}; {_AGAIN}")
    return manifest.model_dump()


def _check_shard(folder: Path, shard: dict[str, Any], *, checksum: bool) -> None:
    for name, record in shard["files"].items():
        check_file(folder / name, record, checksum=checksum, cure=_AGAIN)
