"""One corpus being encoded into one folder: what is to be done, and the doing of some of its ranges."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from mmcl.data.sources.tar.rows import ShardRows
from mmcl.encoding.corpora.folder import REJECTS, nothing_skipped, read_rejects, remove_unlisted, write_rejects
from mmcl.encoding.corpora.manifest import (
    ENCODE,
    Dtype,
    described,
    read_manifest,
    read_shard_description,
    shard_name,
    skipped_rows,
    total,
    with_described,
    write_manifest,
    write_shard_description,
)
from mmcl.encoding.corpora.ranges import Ranges
from mmcl.encoding.corpora.reader import Block, SourceReader, pieces
from mmcl.encoding.corpora.shard import ShardFiles, with_columns
from mmcl.encoding.corpora.stored import id_table
from mmcl.runtime.errors import MmclError
from mmcl.runtime.lock import Claim, exclusive

_BLOCKS_TO_WRITE = 2
log = logging.getLogger("mmcl")


class Part(NamedTuple):
    """What became of a block: vectors (n, D), and how many of its texts were cut, if that is known."""

    vectors: np.ndarray
    truncated: int | None


Embeds = Callable[[Iterable[list[Any]]], Iterator[Part]]
"""From lists of inputs, none empty, to what becomes of each; a list's vectors depend on that list alone."""


@dataclass
class Job:
    """A corpus to be encoded into a folder, opened by :func:`mmcl.encoding.corpora.encode.open_job`.

    Several processes, on one machine or on several with a shared folder, may open the same job at once and encode its
    ranges in any order.

    Attributes:
        reader: of the rows.
        embeds: computes vectors.
        ranges: which rows each shard owns, and what is missing.
        dim: components of a vector.
        dtype: of the vectors on disk.
        block_rows: rows that are read, decoded and encoded at a time.
        on_error: ``skip`` or ``fail``.
        keep: columns beside the ids that the folder began with; None for all.
    """

    reader: SourceReader
    embeds: Embeds
    ranges: Ranges
    dim: int
    dtype: Dtype
    block_rows: int
    on_error: Literal["skip", "fail"] = "skip"
    keep: frozenset[str] | None = None

    @property
    def folder(self) -> Path:
        """Where the vectors go."""
        return self.ranges.folder

    def missing(self) -> list[int]:
        """The numbers of the ranges that have no shard yet; none once the folder is finished."""
        return self.ranges.missing()

    def embedded(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, Part]]:
        """Blocks with their vectors, which belong to its ids: the windows of a text are pooled."""
        waiting: deque[Block] = deque()

        def inputs() -> Iterator[list[Any]]:
            for block in blocks:
                self.check(block)
                waiting.append(block)
                if block.inputs:
                    yield block.inputs

        nothing = Part(np.empty((0, self.dim), np.float32), 0)
        for part in self.embeds(inputs()):
            while not waiting[0].inputs:
                yield waiting.popleft(), nothing
            block = waiting.popleft()
            yield block, part._replace(vectors=_pooled(part.vectors, block.first_windows))
        yield from ((block, nothing) for block in waiting)

    def check(self, block: Block | None = None) -> None:
        """Stop at what cannot be used, if that is wanted, and where a shard of the source cannot be reached.

        Raises:
            MmclError: there is something of this in the block, or in what has been read of the source so far.
        """
        rows = self.reader.rows
        if isinstance(rows, ShardRows):
            if self.on_error == "fail":
                rows.refuse_damage()
            rows.refuse_unreachable()
        if block is not None and block.skipped and self.on_error == "fail":
            row, id_, reason = block.skipped[0]
            raise MmclError(f"{rows.name}: row {row} (id {id_!r}), column '{self.reader.column}': {reason}")

    def table(self, block: Block) -> pa.Table:
        """Ids, labels and other columns of a block."""
        table = id_table(block.ids, len(block.ids), block.labels)
        # A folder that was begun without a column goes on without it.
        wanted = block.columns.items()
        return with_columns(table, {name: of for name, of in wanted if self.keep is None or name in self.keep})

    def finish(self) -> bool:
        """List all shards in the manifest, if none is missing, and write the rejects file.

        Returns:
            Whether the folder is complete; not if everything in it had to be skipped: then all is tried again.
        """
        with exclusive(self.folder, "finishing the encode in", wait=True):
            manifest = read_manifest(self.folder, ENCODE)
            if not manifest["complete"]:
                if missing := self.ranges.missing():
                    raise MmclError(f"{self.folder}: {len(missing):,} shards are missing; give the same command again")
                manifest = self._assembled(manifest)
                write_manifest(self.folder, manifest)
            remove_unlisted(self.folder, manifest)
            return bool(manifest["complete"])

    def _assembled(self, manifest: dict[str, Any]) -> dict[str, Any]:
        if not manifest["shards"]:  # of an earlier try, in which nothing could be encoded
            manifest = manifest | {"skipped": nothing_skipped()}
        numbers = described(self.folder)
        found = with_described(self.folder, manifest)
        if not found["shards"] and found["skipped"]["count"]:
            return found | {"shards": [], "count": 0}
        shards = (read_shard_description(self.folder, number, self.dtype, self.dim) for number in numbers)
        rejects = (entry for shard in shards for entry in shard["skipped"])
        write_rejects(self.folder, chain(self._rejected_before(manifest), rejects))
        return found | {"complete": True}

    def _rejected_before(self, manifest: dict[str, Any]) -> list[dict[str, Any]]:
        """What is known of the rows of shards that the manifest lists already: those of an older mmcl, or of a folder
        that was finished, and whose rejects were being tried again."""
        if not (self.folder / REJECTS).exists():
            return list(manifest["skipped"]["rows"])
        rows = set(skipped_rows(manifest["skipped"]))
        return [entry for entry in read_rejects(self.folder) if entry["row"] in rows]


def encode_range(job: Job, number: int) -> bool:
    """Encode one range of the rows of a job into its shard.

    What other engines than this process's own loop are built on. It holds that:

    - The shard is complete or absent. Its files take their names when they are whole, and ``shard-00003.json``, without
      which they do not count, comes last. A process that ends at any moment, by SIGKILL or for want of disk, leaves
      nothing that counts; what it leaves is removed when the range is encoded again, or by :meth:`Job.finish`.
    - Its bytes depend on the job and the number alone: not on which process encodes it, on what was encoded before, or
      on the order. (On another kind of processor the last bits of vectors may differ.)
    - Any number of processes may call it at once with any numbers, also with the same one: one of them encodes it,
      under a lock that the kernel releases when its process ends.
    - Memory holds a few blocks of rows, whatever the size of the range.

    Args:
        job: from :func:`mmcl.encoding.corpora.encode.open_job`, which each process opens for itself.
        number: one of ``job.ranges.numbers``; those of ``job.missing()`` are left to do. Call :meth:`Job.finish` once
            none is.

    Returns:
        True if it was encoded by this call; False if it was there, or is being encoded by somebody else.

    Raises:
        MmclError: a row cannot be used, under ``on_error="fail"``; or a vector holds NaN.
        OSError: the disk is full.
    """
    return bool(encode_ranges(job, job.ranges.claimed([number])))


def encode_ranges(
    job: Job, claimed: Iterable[tuple[int, Claim]], advance: Callable[[int], object] = lambda rows: None
) -> list[int]:
    """Encode range after range, each as :func:`encode_range` does. Reading, decoding, computing and writing overlap.

    Args:
        job: what is to be done.
        claimed: numbers of ranges and the right to each; read as far ahead as the rows are.
        advance: called with the number of rows done since.

    Returns:
        The numbers of those that were encoded: none if ``claimed`` gave none.
    """
    writing = _Writing(job)

    def of_ranges() -> Iterator[Any]:
        for number, claim in claimed:
            writing.claims[number] = claim
            yield from pieces(job.ranges.rows(number), job.block_rows)

    try:
        with ThreadPoolExecutor(1) as thread:
            due: deque[Future[None]] = deque()
            for block, part in job.embedded(job.reader.blocks(of_ranges())):
                due.append(thread.submit(writing.write, block, part))
                if len(due) > _BLOCKS_TO_WRITE:
                    due.popleft().result()
                advance(len(block.rows))
            job.check()
            for future in due:
                future.result()
    finally:
        writing.end()
    return writing.done


@dataclass
class _Writing:
    """The shards that are being written, block by block, on a thread of its own."""

    job: Job
    claims: dict[int, Claim] = field(default_factory=dict)
    done: list[int] = field(default_factory=list)
    _files: ShardFiles | None = None
    _skipped: list[dict[str, Any]] = field(default_factory=list)
    _truncated: list[int | None] = field(default_factory=list)
    _failed: bool = False

    def write(self, block: Block, part: Part) -> None:
        """Write a block to its shard, and close that if the block is its last."""
        if self._failed:  # the blocks behind one that could not be written
            return
        try:
            self._write(block, part)
        except BaseException:
            self._failed = True
            raise

    def _write(self, block: Block, part: Part) -> None:
        ranges, number = self.job.ranges, self.job.ranges.owner(block.rows[0])
        if self._files is None:
            self._files = ShardFiles(ranges.folder, shard_name(number), self.job.dim, self.job.dtype)
            self._skipped, self._truncated = [], []
        if block.ids:
            self._files.append(part.vectors, self.job.table(block))
        self._skipped += [dict(zip(("row", "id", "reason"), entry, strict=True)) for entry in block.skipped]
        self._truncated.append(part.truncated)
        if block.rows[-1] + 1 == ranges.rows(number).stop:
            self._close(number, ranges.rows(number))

    def _close(self, number: int, rows: range) -> None:
        assert self._files is not None, "a block has been written"
        count, files = self._files.rows, self._files.close()
        self._files = None
        shard = {"name": shard_name(number), "rows": count, "start": rows.start, "rows_done": rows.stop, "files": files}
        try:
            write_shard_description(self.job.folder, shard, self._skipped, total(self._truncated))
        except OSError:  # a full disk gets its space back
            for name in files:
                (self.job.folder / name).unlink(missing_ok=True)
            raise
        self.claims.pop(number).release()
        self.done.append(number)

    def end(self) -> None:
        """Give up what is not complete."""
        if self._files is not None:
            self._files.discard()
        for claim in self.claims.values():
            claim.release()


def _pooled(vectors: np.ndarray, firsts: list[int] | None) -> np.ndarray:
    """The mean of the windows of each text, of unit length; a text of one window keeps its vector."""
    if firsts is None or len(firsts) == len(vectors):
        return vectors
    means = np.add.reduceat(vectors, firsts, axis=0)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    pooled = np.divide(means, lengths, out=np.zeros_like(means), where=lengths > 0)
    counts = np.diff([*firsts, len(vectors)])
    return np.where((counts == 1)[:, None], vectors[firsts], pooled).astype(np.float32)
