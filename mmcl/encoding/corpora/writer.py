"""Writing vectors to disk, shard by shard."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from mmcl.encoding.corpora.folder import new_manifest, open_folder, remove_unlisted
from mmcl.encoding.corpora.manifest import (
    LISTED,
    Dtype,
    as_ranges,
    shard_name,
    shard_number,
    skipped_rows,
    sound_file,
    write_manifest,
)
from mmcl.encoding.corpora.shard import ShardFiles, storable, with_columns
from mmcl.encoding.corpora.stored import id_table, read_table
from mmcl.encoding.corpora.vectors import Vectors
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import as_path


class VectorWriter:
    """Writes vectors shard by shard; an interrupted writer's folder is continued by the next with the same arguments.

    As a context manager it finishes the folder, or, on an error, leaves the shards already listed; interrupted, it
    closes the shard at hand.

    Args:
        folder: where to; new, empty, or left by a writer with equal ``dim``, ``model``, ``dtype`` and ``source``.
        dim: components of a vector.
        model: name or folder of the encoder.
        dtype: ``float32``, ``float16`` or ``int8`` on disk.
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
        if shard_rows < 1:
            raise MmclError(f"shard_rows is {shard_rows}; it must be 1 or more")
        self.folder = as_path(folder)
        self._dtype: Dtype = dtype
        self._shard_rows, self._shard_seconds = shard_rows, shard_seconds
        wanted = new_manifest(self.folder, dim=dim, model=model, dtype=dtype, source=source, encoder=encoder)
        self._blocks: list[np.ndarray] = []
        self._tables: list[pa.Table] = []
        self._schema: pa.Schema | None = None
        self.rows_done = 0
        self._manifest, self.same_encoder = open_folder(self.folder, wanted, resume)
        if not self.complete and self._manifest["shard_rows"]:
            raise MmclError(f"{self.folder}: an encode is not finished there; give its command again first")
        remove_unlisted(self.folder, self._manifest)
        self._skipped_rows = set(skipped_rows(self.skipped))
        if self.shards:
            self._schema = read_table(self.folder / f"{self.shards[0]['name']}.ids.parquet").schema
            self.rows_done = self.shards[-1]["rows_done"]
        self._rows_appended = self.rows_done
        self._since = time.monotonic()

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
        columns: Mapping[str, Sequence[int | None] | pa.ChunkedArray] | None = None,
    ) -> None:
        """Add a block.

        Args:
            ids: n integers or n strings; they need not be unique.
            vectors: (n, D), n ≥ 0.
            labels: n captions or paths to show; in every block or in none.
            rows_done: rows of the source consumed with this block's last; one a vector if left out.
            columns: whole numbers, or columns of Arrow, to keep beside the ids, n values of a name; the same names in
                every block.

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
        """The vectors as they are, if they can be stored."""
        storable(vectors, table, self._manifest["dim"], self._dtype, self.folder)
        return vectors.astype(np.float32, copy=False)

    def skip(self, row: int, id: str, reason: str) -> None:
        """Record something in the source that gets no vector; before the block whose ``rows_done`` passes ``row``."""
        self.skipped["count"] += 1
        self._skipped_rows.add(row)
        if len(self.skipped["rows"]) < LISTED:
            self.skipped["rows"].append({"row": row, "id": id, "reason": reason})

    def skipped_rows(self) -> list[int]:
        """The rows of which something was skipped, in order.

        Raises:
            MmclError: an older mmcl listed but the first of them.
        """
        if self.skipped["ranges"] is None and self.skipped["count"] > LISTED:
            raise MmclError(
                f"{self.folder}: an older mmcl skipped {self.skipped['count']:,} rows there and listed the first "
                f"{LISTED:,}, so that the others cannot be tried again; choose another --out"
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
        stored = Vectors(self.folder, self._manifest).shard(number)[1]
        old = self.table(number)
        kept = np.setdiff1d(np.arange(len(stored)), positions)
        merged = pa.concat_tables([old.take(kept), table.cast(old.schema)])
        order = np.argsort(merged["row"].to_numpy(), kind="stable")
        block = np.concatenate([stored[kept], self._checked(vectors, table)])[order]
        self._replace_shard(number, [block], merged.take(order), (shard["start"], shard["rows_done"]))

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
        table, rows = pa.concat_tables(self._tables), (self.rows_done, self._rows_appended)
        self._replace_shard(len(self.shards), self._blocks, table, rows)
        self.rows_done = self._rows_appended
        self._blocks, self._tables = [], []
        self._since = time.monotonic()

    def _replace_shard(
        self, number: int, blocks: list[np.ndarray], table: pa.Table, rows: tuple[int | None, int]
    ) -> None:
        """Write a shard under a name of its own, then list it in the place of the one of that number, if any."""
        before = list(self.shards)
        name = shard_name(1 + max((shard_number(shard["name"]) for shard in before), default=-1))
        try:
            files = self._write_files(name, blocks, table)
            shard = {"name": name, "rows": len(table), "start": rows[0], "rows_done": rows[1], "files": files}
            self._list([*before[:number], shard, *before[number + 1 :]])
            self._write_manifest()
        except OSError:  # a full disk gets its space back
            self._list(before)
            remove_unlisted(self.folder, self._manifest)
            raise
        if number < len(before):
            remove_unlisted(self.folder, self._manifest)

    def _list(self, shards: list[dict[str, Any]]) -> None:
        self._manifest |= {"shards": shards, "count": sum(shard["rows"] for shard in shards)}

    def _write_files(self, name: str, blocks: list[np.ndarray], table: pa.Table) -> dict[str, Any]:
        files, start = ShardFiles(self.folder, name, self._manifest["dim"], self._dtype), 0
        try:
            for block in blocks:
                files.append(block, table.slice(start, len(block)))
                start += len(block)
            return files.close()
        except OSError:
            files.discard()
            raise

    def _write_manifest(self) -> None:
        self.skipped["ranges"] = as_ranges(self._skipped_rows)
        write_manifest(self.folder, self._manifest)

    def __enter__(self) -> VectorWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.finish()
        elif issubclass(kind, KeyboardInterrupt) and self._blocks:  # what has been computed is not computed again
            self._close_shard()
