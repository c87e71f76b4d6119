"""A corpus to vectors on disk: read, decode and encode range by range, do what earlier or other processes left."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from mmcl.data.rows import Rows
from mmcl.data.sources.tar.rows import ShardRows
from mmcl.encoding.corpora.changes import changed
from mmcl.encoding.corpora.folder import REJECTS, write_rejects
from mmcl.encoding.corpora.job import Job, encode_ranges
from mmcl.encoding.corpora.manifest import ENCODE, read_manifest
from mmcl.encoding.corpora.opening import open_job
from mmcl.encoding.corpora.reader import BLOCK_ROWS, Block, SourceReader, pieces
from mmcl.encoding.corpora.settings import USUAL, Columns, Encodes, Layout
from mmcl.encoding.corpora.vectors import Vectors, open_vectors
from mmcl.encoding.corpora.writer import VectorWriter
from mmcl.runtime.errors import MmclError
from mmcl.runtime.lock import exclusive
from mmcl.runtime.progress import progress

_SECONDS_BETWEEN_LOOKS = 0.5

log = logging.getLogger("mmcl")


def encode_source(
    encoder: Encodes,
    rows: Rows | ShardRows,
    columns: str | Columns,
    out: str | Path,
    *,
    layout: Layout = USUAL,
    prompt: str | None = None,
    truncate_dim: int | None = None,
    on_error: Literal["skip", "fail"] = "skip",
    retry_skipped: bool = False,
    show_progress: bool | None = None,
) -> Vectors:
    """Encode a column of ``rows`` into the folder ``out``.

    Every shard owns a range of the rows, and is complete or absent. Given again, the same call encodes the ranges that
    are missing, whatever ended the one before, and the result is the same to the byte; several processes that give it
    at once, on one machine or on several with a shared folder, share the ranges, and each returns when all are done. A
    finished folder is returned as it is; images whose files have changed since are encoded again. Memory holds a few
    blocks of decoded rows. What is unreadable or empty is listed in ``rejects.jsonl``.

    Args:
        encoder: its ``encode`` is called with lists of texts or of images: as its ``prepare_image`` gives them, small
            and in the threads that decode, or without one as PIL images.
        rows: the corpus; as ``open_rows`` opens it, tar shards too, which are read as a stream.
        columns: the column to encode, or with others of which labels and ids are taken.
        out: a new folder, or one of an earlier run with the same encoder, rows, column, modality, dtype, prompt and
            dimension.
        layout: how the vectors are computed and written, part by part.
        prompt: name of the model's prompt to put before every text; if None the one that the evaluation puts before
            documents (:func:`mmcl.encoding.prompts.document_prompt`); "" for none.
        truncate_dim: keep the first so many dimensions (before normalising).
        on_error: ``skip`` leaves out what is unreadable or empty, lists it, says once how many; ``fail`` stops there.
        retry_skipped: try the images again that an earlier run left out; their vectors come last.
        show_progress: a bar on stderr; None shows it on a terminal.

    Returns:
        The vectors, of unit length, memory-mapped.

    Raises:
        MmclError: no such column, a modality the encoder lacks, an unusable image or text under ``fail``, nothing
            that can be encoded, or ``out`` holds vectors of another origin.
        OSError: the disk is full. Give the same call again once there is space.
        KeyboardInterrupt: as it comes, saying where the same call goes on.
    """
    settings: dict[str, Any] = {"layout": layout, "prompt": prompt, "truncate_dim": truncate_dim, "on_error": on_error}
    job = open_job(encoder, rows, columns, out, **settings)
    if layout.engine is not None:
        layout.engine(job, show_progress)
    _fill(job, show_progress)
    if job.finish() and job.reader.modality == "image":
        with exclusive(job.folder, "encoding into", wait=True):
            writer = _writer(job.folder)
            _encode_changed(writer, job)
            if retry_skipped:
                _retry(writer, job, show_progress)
    _report(open_vectors(job.folder, partial=True), job.reader)
    return open_vectors(job.folder)


def _fill(job: Job, show_progress: bool | None) -> None:
    """Encode the ranges that are left, beside whoever else does."""
    left, waits = job.missing(), False
    try:
        with progress("encode", len(job.reader.rows), "rows", show_progress) as advance:
            advance(job.ranges.total - sum(len(job.ranges.rows(number)) for number in left))
            while left:
                ours = encode_ranges(job, job.ranges.claimed(left), advance)
                still = job.missing()
                theirs = set(left).difference(ours, still)
                advance(sum(len(job.ranges.rows(number)) for number in theirs))
                if not ours and still:
                    if not waits:
                        log.info(f"{job.folder}: the last {len(still):,} shards are being encoded by other processes")
                    waits = True
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
                left = still
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; given again, it encodes the {len(job.missing()):,} of {len(job.ranges.numbers):,} shards "
            "that are missing"
        ) from None


def _writer(folder: Path) -> VectorWriter:
    """A finished folder, opened to change it."""
    manifest = read_manifest(folder, ENCODE)
    return VectorWriter(folder, **{key: manifest[key] for key in ("dim", "dtype", "source", "model", "encoder")})


def _retry(writer: VectorWriter, job: Job, show_progress: bool | None) -> None:
    """Encode the images that had been skipped and can now be used."""
    rows = writer.skipped_rows()
    if not rows:
        log.info(f"{writer.folder}: no skipped images to try again")
        return
    before, rejects = writer.count, list[dict[str, Any]]()
    with progress("retry", len(rows), "rows", show_progress) as advance, writer:
        for block, part in job.embedded(job.reader.blocks(pieces(rows, job.block_rows))):
            writer.retry(block.rows)
            rejects += _skip(writer, block)
            writer.append(block.ids, part.vectors, block.labels, rows_done=len(job.reader.rows), columns=block.columns)
            advance(len(block.rows))
        write_rejects(job.folder, rejects)
    log.info(f"{writer.folder}: tried {len(rows):,} skipped rows again, {writer.count - before:,} now have a vector")


def _encode_changed(writer: VectorWriter, job: Job) -> None:
    """Encode the images again whose files have changed since their vectors were stored."""
    count, rejects = 0, list(open_vectors(job.folder).rejects())
    for number in range(len(writer.shards)):
        places, rows = changed(writer.table(number), job.reader.images)
        if not rows:
            continue
        vectors, tables = [], []
        for block, part in job.embedded(job.reader.blocks(pieces(rows, BLOCK_ROWS["image"]))):
            rejects += _skip(writer, block)
            vectors.append(part.vectors)
            tables.append(job.table(block))
        write_rejects(job.folder, rejects)
        writer.revise(number, places, np.concatenate(vectors), pa.concat_tables(tables))
        count += len(rows)
    if count:
        log.info(f"{writer.folder}: {count:,} images had changed since, and were encoded again")


def _skip(writer: VectorWriter, block: Block) -> list[dict[str, Any]]:
    """Record what of a block has no vector, and return the entries of the rejects file."""
    for row, id_, reason in block.skipped:
        writer.skip(row, id_, reason)
    return [{"row": row, "id": id_, "reason": reason} for row, id_, reason in block.skipped]


def _report(vectors: Vectors, reader: SourceReader) -> None:
    name, count = reader.rows.name, vectors.skipped["count"]
    if vectors.truncated:
        log.warning(
            f"{name}: {vectors.truncated:,} texts in column '{reader.column}' were longer than the model reads, and "
            "cut; --long chunk embeds all of them"
        )
    if not count:
        return
    first = vectors.skipped["rows"][0]
    if not len(vectors):
        raise MmclError(
            f"{name}: nothing in column '{reader.column}' can be encoded "
            f"(row {first['row']}, id {first['id']!r}: {first['reason']})"
        )
    again = "; --retry-skipped tries them again" if reader.modality == "image" else ""
    log.warning(
        f"{name}: skipped {count:,} in column '{reader.column}' of {len(reader.rows):,} rows "
        f"(first: row {first['row']}, id {first['id']!r}: {first['reason']}); "
        f"they are listed in {vectors.folder / REJECTS}{again}"
    )
