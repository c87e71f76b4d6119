"""Writing vectors to disk, shard by shard."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from mmcl.encoding.corpora.manifest import MANIFEST, Dtype, check_shard, read_manifest, sound_file, write_manifest
from mmcl.encoding.corpora.stored import file_record, id_table, near, read_table, write_table
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import as_path, atomic_file
from mmcl.runtime.lock import entries

_LISTED = 1_000


class VectorWriter:
    """Writes vectors shard by shard; an interrupted writer's folder is continued by the next with the same arguments.

    As a context manager it finishes the folder, or, on an error, leaves the shards already listed; interrupted, it
    closes the shard at hand.

    Args:
        folder: where to; new, empty, or left by a writer with equal ``dim``, ``model``, ``dtype`` and ``source``.
        dim: components of a vector.
        model: name or folder of the encoder.
        dtype: ``float32`` or ``float16`` on disk.
        source: what the vectors come from, as JSON values that tell it from another source; ``name`` is only shown.
        shard_rows: a shard is closed by the block that brings it to this many vectors; a block is never split.
        shard_seconds: or by the first block that ends so long after the last shard was closed.
        resume: continue such a folder; if False, only a new or empty one is accepted.
        encoder: of the encoder, a :class:`~mmcl.encoding.corpora.stored.Fingerprint`. Where the folder has
            that of the same weights, ``model`` may differ: the model has moved.

    Attributes:
        rows_done: rows of the source that the listed shards account for; go on with this one.
        count: vectors in listed shards.
        complete: the folder was finished before.
        same_encoder: the folder's fingerprint of the encoder is that of this one; False where one of them is unknown.

    Raises:
        MmclError: the folder holds something else, or vectors of another model, dimension, dtype or source.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        dim: int,
        model: str | None,
        dtype: Dtype = "float32",
        source: dict[str, Any] | None = None,
        shard_rows: int = 100_000,
        shard_seconds: float = 60.0,
        resume: bool = True,
        encoder: dict[str, str] | None = None,
    ) -> None:
        if dtype not in get_args(Dtype):
            raise MmclError(f"vectors are stored as float32 or float16, not '{dtype}'")
        if shard_rows < 1:
            raise MmclError(f"shard_rows is {shard_rows}; it must be 1 or more")
        self.folder = as_path(folder)
        self._dtype = np.dtype(dtype)
        self._shard_rows, self._shard_seconds = shard_rows, shard_seconds
        self._manifest: dict[str, Any] = {
            "model": model,
            "near": near(self.folder, model),
            "encoder": encoder,
            "dim": dim,
            "dtype": dtype,
            "source": source or {},
            "count": 0,
            "complete": False,
            "skipped": {"count": 0, "rows": [], "ranges": []},
            "shards": [],
        }
        self._blocks: list[np.ndarray] = []
        self._tables: list[pa.Table] = []
        self._schema: pa.Schema | None = None
        self.rows_done = 0
        self.same_encoder = True
        self._encoder = encoder
        self._open(resume)
        ranges = self.skipped["ranges"] or [(entry["row"], entry["row"] + 1) for entry in self.skipped["rows"]]
        self._skipped_rows = {row for start, stop in ranges for row in range(start, stop)}
        if self.shards:
            self._schema = read_table(self.folder / f"{self.shards[0]['name']}.ids.parquet").schema
            self.rows_done = self.shards[-1]["rows_done"]
        self._rows_appended = self.rows_done
        self._since = time.monotonic()

    def _open(self, resume: bool) -> None:
        path = self.folder / MANIFEST
        if not path.exists():
            if self.folder.is_file() or (self.folder.is_dir() and not all(map(_is_leftover, entries(self.folder)))):
                raise MmclError(f"{self.folder}: exists and holds no vectors; choose another --out")
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_unlisted()
            self._write_manifest()
            return
        if not resume:
            raise MmclError(f"{self.folder}: holds vectors already; delete it or choose another --out")
        found = read_manifest(self.folder, "delete it or choose another --out")
        for key, now, then in _differences(self._manifest, found):
            raise MmclError(
                f"{self.folder}: holds vectors of another {key} ({then!r}, now {now!r}); "
                "delete it or choose another --out"
            )
        for shard in found["shards"]:
            check_shard(self.folder, shard)
        if not found["shards"] and found["skipped"]["count"]:  # nothing could be encoded: all is tried again
            found |= {"complete": False, "skipped": self.skipped}
        now = {key: self._manifest[key] for key in ("model", "near", "encoder")}
        self.same_encoder = found["encoder"] is not None and now["encoder"] is not None
        # A model that has moved is found where it is now.
        self._manifest = found | now if self.same_encoder else found
        if self._manifest["model"] != found["model"]:
            self._write_manifest()
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
        self,
        ids: Any,
        vectors: np.ndarray,
        labels: Sequence[str | None] | None = None,
        *,
        rows_done: int | None = None,
        columns: Mapping[str, Sequence[int | None]] | None = None,
    ) -> None:
        """Add a block.

        Args:
            ids: n integers or n strings; they need not be unique.
            vectors: (n, D), n ≥ 0.
            labels: n captions or paths to show; in every block or in none.
            rows_done: rows of the source consumed with this block's last; one a vector if left out.
            columns: other numbers of each vector to keep beside its id, n of a name; the same names in every block.

        Raises:
            MmclError: shapes that do not fit, or a vector with NaN, infinity, or a value too large for float16.
            OSError: the disk is full; listed shards stay.
        """
        if self.complete:
            raise MmclError(f"{self.folder}: is complete; write more vectors to another folder")
        # A folder that was begun without goes on without.
        known = {
            name: values
            for name, values in (columns or {}).items()
            if self._schema is None or name in self._schema.names
        }
        table = with_columns(id_table(ids, len(vectors), labels), known)
        block = self._checked(vectors, table)
        self._rows_appended = self._rows_appended + len(block) if rows_done is None else rows_done
        if len(block):
            self._schema = self._schema or table.schema
            if table.schema != self._schema:
                raise MmclError("ids must all be integers or all strings, and labels given with every block or none")
            self._blocks.append(block)
            self._tables.append(table)
        count = sum(map(len, self._blocks))
        if count >= self._shard_rows or (count and time.monotonic() - self._since >= self._shard_seconds):
            self._close_shard()

    def _checked(self, vectors: np.ndarray, table: pa.Table) -> np.ndarray:
        """The vectors in the dtype on disk, if they can be."""
        if vectors.ndim != 2 or vectors.shape[1] != self._manifest["dim"]:
            raise MmclError(f"{self.folder}: vectors of shape {vectors.shape}, expected (n, {self._manifest['dim']})")
        with np.errstate(over="ignore"):
            block = vectors.astype(self._dtype)
        broken = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(broken):
            raise MmclError(
                f"the vector of id {table['id'][int(broken[0])].as_py()!r} holds NaN, infinity, or more than "
                f"{self._dtype} can ({len(broken):,} such in this block)"
            )
        return block

    def skip(self, row: int, id: str, reason: str) -> None:
        """Record something in the source that gets no vector; before the block whose ``rows_done`` passes ``row``."""
        self.skipped["count"] += 1
        self._skipped_rows.add(row)
        if len(self.skipped["rows"]) < _LISTED:
            self.skipped["rows"].append({"row": row, "id": id, "reason": reason})

    def skipped_rows(self) -> list[int]:
        """The rows of which something was skipped, in order.

        Raises:
            MmclError: an older mmcl listed but the first of them.
        """
        if self.skipped["ranges"] is None and self.skipped["count"] > _LISTED:
            raise MmclError(
                f"{self.folder}: an older mmcl skipped {self.skipped['count']:,} rows there and listed the first "
                f"{_LISTED:,}, so that the others cannot be tried again; choose another --out"
            )
        return sorted(self._skipped_rows)

    def retry(self, rows: Collection[int]) -> None:
        """Take rows from those that were skipped; before the block that holds what can now be used of them."""
        self._manifest["complete"] = False
        self._skipped_rows -= set(rows)
        self.skipped["count"] = self.skipped["count"] - len(rows)
        self.skipped["rows"] = [entry for entry in self.skipped["rows"] if entry["row"] not in rows]

    def table(self, number: int) -> pa.Table:
        """Ids, labels and other columns of a listed shard. Raises ``MmclError`` if they are damaged."""
        return read_table(sound_file(self.folder, self.shards[number], "ids.parquet"))

    def adopt_encoder(self) -> None:
        """Keep the fingerprint of the encoder, which has been found to give the vectors that are there."""
        if self._encoder is not None and self._manifest["encoder"] is None:
            self._manifest["encoder"] = self._encoder
            self._write_manifest()

    def revise(self, number: int, positions: Sequence[int], vectors: np.ndarray, table: pa.Table) -> None:
        """Put other vectors, of other versions of the same rows, in the place of some of a shard.

        Args:
            number: of the shard, from 0.
            positions: the P places in it that change.
            vectors: (n, D), n ≤ P; each goes to the place of its row.
            table: their ids, labels and columns, among them ``row``. Rows of the P that it lacks are left out.

        Raises:
            MmclError: the shard is damaged.
        """
        shard = self.shards[number]
        stored = np.load(sound_file(self.folder, shard, "npy"), mmap_mode="r", allow_pickle=False)
        old = self.table(number)
        kept = np.setdiff1d(np.arange(len(stored)), positions)
        merged = pa.concat_tables([old.take(kept), table.cast(old.schema)])
        order = np.argsort(merged["row"].to_numpy(), kind="stable")
        block = np.concatenate([stored[kept], self._checked(vectors, table)])[order]
        self._replace_shard(number, [block], merged.take(order), shard["rows_done"])

    def finish(self) -> None:
        """Write the last shard and mark the folder complete, unless all there was had to be skipped."""
        if self.complete:
            return
        if self._blocks:
            self._close_shard()
        self._manifest["complete"] = bool(self.shards) or not self.skipped["count"]
        if self.complete:
            self._write_manifest()

    @property
    def shards(self) -> list[dict[str, Any]]:
        """The listed shards, as the manifest has them."""
        return self._manifest["shards"]

    def _close_shard(self) -> None:
        self._replace_shard(len(self.shards), self._blocks, pa.concat_tables(self._tables), self._rows_appended)
        self.rows_done = self._rows_appended
        self._blocks, self._tables = [], []
        self._since = time.monotonic()

    def _replace_shard(self, number: int, blocks: list[np.ndarray], table: pa.Table, rows_done: int) -> None:
        """Write a shard under a name of its own, then list it in the place of the one of that number, if any."""
        before = list(self.shards)
        name = f"shard-{1 + max((int(shard['name'][6:]) for shard in before), default=-1):05}"
        try:
            files = self._write_files(name, blocks, table)
            shard = {"name": name, "rows": len(table), "rows_done": rows_done, "files": files}
            self._list([*before[:number], shard, *before[number + 1 :]])
            self._write_manifest()
        except OSError:  # a full disk gets its space back
            self._list(before)
            self._remove_unlisted()
            raise
        if number < len(before):
            self._remove_unlisted()

    def _list(self, shards: list[dict[str, Any]]) -> None:
        self._manifest |= {"shards": shards, "count": sum(shard["rows"] for shard in shards)}

    def _write_files(self, name: str, blocks: list[np.ndarray], table: pa.Table) -> dict[str, Any]:
        vectors, ids = self.folder / f"{name}.npy", self.folder / f"{name}.ids.parquet"
        with atomic_file(vectors) as beside, beside.open("wb") as file:
            header = {"descr": self._dtype.str, "fortran_order": False, "shape": (len(table), self._manifest["dim"])}
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks:
                file.write(np.ascontiguousarray(block).data)
        with atomic_file(ids) as beside:
            write_table(beside, table.combine_chunks())
        return {path.name: file_record(path) for path in (vectors, ids)}

    def _write_manifest(self) -> None:
        rows = np.array(sorted(getattr(self, "_skipped_rows", ())), dtype=np.int64)
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else []
        self.skipped["ranges"] = [(int(run[0]), int(run[-1]) + 1) for run in runs]
        write_manifest(self.folder, self._manifest)

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
        elif issubclass(kind, KeyboardInterrupt) and self._blocks:  # what has been computed is not computed again
            self._close_shard()


def with_columns(table: pa.Table, columns: Mapping[str, Sequence[int | None]]) -> pa.Table:
    """The table with other columns of numbers."""
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, pa.int64()))
    return table


def _is_leftover(path: Path) -> bool:
    half_written = path.name.startswith((".shard-", f".{MANIFEST}.")) and path.name.endswith(".part")
    return half_written or (path.name.startswith("shard-") and path.name.endswith((".npy", ".ids.parquet")))


def _differences(now: dict[str, Any], then: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What tells the vectors in a folder from those to be written: key, now, then."""
    known = now["encoder"] is not None and then["encoder"] is not None
    if known and now["encoder"]["weights"] != then["encoder"]["weights"]:
        what = "with other weights" if now["model"] == then["model"] else "of other weights"
        yield "model", f"{now['model']} {what}", then["model"]
    for key in ("model", "dim", "dtype"):
        if now[key] != then[key] and not (known and key == "model"):
            yield key, now[key], then[key]
    old = then["source"]
    name, former = now["source"].get("name"), old.get("name")
    fingerprints = now["source"].get("fingerprint"), old.get("fingerprint")
    if name and former and fingerprints[0] != fingerprints[1]:
        yield ("source", name, former) if name != former else (f"state of {name}", *fingerprints)
    for key in sorted((now["source"].keys() | old.keys()) - {"name"}):
        if now["source"].get(key) != old.get(key):
            yield f"source: {key}", now["source"].get(key), old.get(key)
