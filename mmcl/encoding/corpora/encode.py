"""A corpus to vectors on disk: read, decode and encode block by block, go on where an earlier run stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from mmcl.data.images import decode
from mmcl.data.rows import Rows
from mmcl.data.sources.tar.rows import ShardRows
from mmcl.encoding.corpora.changes import changed
from mmcl.encoding.corpora.reader import BLOCK_ROWS, Block, Modality, SourceReader, modality_of
from mmcl.encoding.corpora.stored import id_table
from mmcl.encoding.corpora.vectors import Vectors, open_vectors
from mmcl.encoding.corpora.writer import VectorWriter, with_columns
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import as_path
from mmcl.runtime.lock import exclusive
from mmcl.runtime.progress import progress

_PROBE_ROWS = 8
# Of unit vectors: bfloat16 here and float32 where the run began put MiniLM's 0.01 apart, those of 24 dimensions 0.02.
# What stands beside a text in bfloat16, float16 on disk and TF32 change less.
_PROBE_DISTANCE = 0.03

log = logging.getLogger("mmcl")


class Encodes(Protocol):
    """What is asked of an encoder.

    ``prompt`` and ``truncate_dim`` are only passed where they are asked for, so that an encoder without them will do
    for all else. More is used where it is there: ``prepare_image``, ``exact_decoding``, ``path``,
    ``prompt_text(prompt)`` and ``fingerprint()``, as of :class:`mmcl.encoding.encoder.Encoder`.
    """

    @property
    def dim(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def modalities(self) -> Any: ...
    def encode(
        self,
        inputs: Any,
        modality: str | None = None,
        *,
        normalize: bool = True,
        truncate_dim: int | None = None,
        prompt: str | None = None,
        show_progress: bool | None = None,
    ) -> np.ndarray: ...


@dataclass(frozen=True)
class Columns:
    """What is read of every row.

    Attributes:
        inputs: the column to encode: texts, lists of texts (each text gets a vector, under its row's id), or images;
            "" for those that a table tower reads.
        modality: ``image``, ``text`` or ``table``; by default what the column holds: encoded bytes or paths of
            files are images.
        labels: the column that tables of results show; by default the text, cut at 200 characters, or the image's path.
        ids: the column that searches return for a vector; by default ``id`` or ``_id``, else the number of the row. Of
            tar shards, the shard and key of the sample.
    """

    inputs: str
    modality: Modality | None = None
    labels: str | None = None
    ids: str | None = None


@dataclass(frozen=True)
class Layout:
    """How vectors are computed and written, part by part.

    Attributes:
        dtype: ``float32`` or ``float16`` on disk.
        shard_rows: a shard is written once it has this many vectors, and after a minute at the latest: what a killed
            process can cost.
        batch_rows: rows read, decoded and handed to the encoder at a time; by default 4,096 texts or 64 images.
    """

    dtype: Literal["float32", "float16"] = "float32"
    shard_rows: int = 100_000
    batch_rows: int | None = None

    def block_rows(self, modality: Modality) -> int:
        """Rows at a time. Raises ``MmclError`` if ``batch_rows`` is less than 1, or for a modality that is none."""
        asked = self.batch_rows
        if modality not in BLOCK_ROWS:
            raise MmclError(
                f"modality is '{modality}', where a corpus is of image, text or table; of several towers of a "
                "kind take one, with encoder.select(name)"
            )
        if asked is not None and asked < 1:
            raise MmclError(f"batch_rows is {asked}; it must be 1 or more")
        return min(asked or BLOCK_ROWS[modality], self.shard_rows)


class Wanted(NamedTuple):
    """What else is asked of the encoder's ``encode``: only what is not as usual is passed on and recorded."""

    prompt: str | None = None
    truncate_dim: int | None = None

    def named(self) -> dict[str, Any]:
        """The settings that are given."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def encode_source(
    encoder: Encodes,
    rows: Rows | ShardRows,
    columns: str | Columns,
    out: str | Path,
    *,
    layout: Layout = Layout(),
    prompt: str | None = None,
    truncate_dim: int | None = None,
    on_error: Literal["skip", "fail"] = "skip",
    retry_skipped: bool = False,
    show_progress: bool | None = None,
) -> Vectors:
    """Encode a column of ``rows`` into the folder ``out``.

    An interrupted run's folder is continued from its last complete shard; a finished one is returned as it is; images
    whose files have changed since are encoded again. Memory holds two blocks of decoded rows and one shard of vectors.

    Args:
        encoder: its ``encode`` is called with lists of texts or of images: as its ``prepare_image`` gives them, small
            and in the threads that decode, or without one as PIL images.
        rows: the corpus; as ``open_rows`` opens it, tar shards too, which are read as a stream.
        columns: the column to encode, or with others of which labels and ids are taken.
        out: a new folder, or one of an earlier run with the same encoder, rows, column, modality, dtype, prompt and
            dimension.
        layout: how the vectors are computed and written, part by part.
        prompt: name of the model's prompt to put before every text; its default one if None.
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
    columns = Columns(columns) if isinstance(columns, str) else columns
    fields, images = _table_fields(encoder, rows) if columns.modality == "table" else ([], [])
    rows.require([name for name in (*(fields or [columns.inputs]), columns.labels, columns.ids) if name is not None])
    modality = columns.modality or modality_of(rows, columns.inputs)
    size, prepare = layout.block_rows(modality), getattr(encoder, "prepare_image", decode)
    inputs = ", ".join(fields) or columns.inputs
    reader = SourceReader(rows, inputs, modality, columns.labels, columns.ids, prepare, fields, images)
    wanted = Wanted(prompt, truncate_dim)
    _check_wanted(encoder, wanted, modality)

    encode = partial(_encode, encoder, modality=modality, wanted=wanted)
    with exclusive(as_path(out), "encoding into"):
        writer = _open_writer(encoder, reader, out, layout, wanted)
        if modality == "image":
            _encode_changed(writer, encode, reader, on_error)
        if not writer.complete:
            _fill(writer, encode, reader, size, on_error, show_progress)
        if retry_skipped and writer.complete:
            _retry(writer, encode, reader, size, on_error, show_progress)
        _report_skipped(writer, reader)
    return open_vectors(out)


def _table_fields(encoder: Encodes, rows: Rows | ShardRows) -> tuple[list[str], list[str]]:
    """The columns that the only table tower of an encoder reads, and those of images among them."""
    towers = getattr(encoder, "towers", None)
    if not isinstance(rows, Rows) or towers is None or "table" not in towers.modalities:
        raise MmclError(f"{rows.name}: rows of tables are encoded by a model with a tower of them, and not as a stream")
    processor = towers.embedder("table").processor
    return processor.columns, processor.images


Encode = Callable[[list[Any]], np.ndarray]
"""From texts or decoded images to vectors (N, D)."""


def _fill(
    writer: VectorWriter, encode: Encode, reader: SourceReader, size: int, on_error: str, show_progress: bool | None
) -> None:
    """Encode the rows that are left."""
    try:
        with progress("encode", len(reader.rows), "rows", show_progress) as advance, writer:
            advance(writer.rows_done)
            for block in reader.blocks(range(writer.rows_done, len(reader.rows)), size):
                _take_skipped(block, reader, writer, on_error)
                vectors = encode(block.inputs)
                writer.append(block.ids, vectors, block.labels, rows_done=block.rows[-1] + 1, columns=block.columns)
                advance(len(block.rows))
            _refuse_damage(reader, on_error)  # of the last shards, or of all
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; given again, it goes on at row {writer.rows_done:,} of {len(reader.rows):,}"
        ) from None


def _retry(
    writer: VectorWriter, encode: Encode, reader: SourceReader, size: int, on_error: str, show_progress: bool | None
) -> None:
    """Encode what had been skipped and can now be used; an empty text stays one."""
    rows = writer.skipped_rows() if reader.modality == "image" else []
    if not rows:
        log.info(f"{writer.folder}: no skipped images to try again")
        return
    before = writer.count
    with progress("retry", len(rows), "rows", show_progress) as advance, writer:
        for block in reader.blocks(rows, size):
            vectors = encode(block.inputs)
            if on_error == "fail":
                _take_skipped(block, reader, writer, on_error)
            writer.retry(block.rows)
            _take_skipped(block, reader, writer, on_error)
            writer.append(block.ids, vectors, block.labels, rows_done=len(reader.rows), columns=block.columns)
            advance(len(block.rows))
    log.info(f"{writer.folder}: tried {len(rows):,} skipped rows again, {writer.count - before:,} now have a vector")


def _encode_changed(writer: VectorWriter, encode: Encode, reader: SourceReader, on_error: str) -> None:
    """Encode the images again whose files have changed since their vectors were stored."""
    count = 0
    for number in range(len(writer.shards)):
        places, rows = changed(writer.table(number), reader.images)
        if not rows:
            continue
        vectors, tables = [], []
        for block in reader.blocks(rows, BLOCK_ROWS["image"]):
            _take_skipped(block, reader, writer, on_error)
            vectors.append(encode(block.inputs))
            tables.append(with_columns(id_table(block.ids, len(block.ids), block.labels), block.columns))
        writer.revise(number, places, np.concatenate(vectors), pa.concat_tables(tables))
        count += len(rows)
    if count:
        log.info(f"{writer.folder}: {count:,} images had changed since, and were encoded again")


def _take_skipped(block: Block, reader: SourceReader, writer: VectorWriter, on_error: str) -> None:
    _refuse_damage(reader, on_error)
    if block.skipped and on_error == "fail":
        row, id_, reason = block.skipped[0]
        raise MmclError(f"{reader.rows.name}: row {row} (id {id_!r}), column '{reader.column}': {reason}")
    for row, id_, reason in block.skipped:
        writer.skip(row, id_, reason)


def _refuse_damage(reader: SourceReader, on_error: str) -> None:
    if isinstance(reader.rows, ShardRows):
        if on_error == "fail":
            reader.rows.refuse_damage()
        reader.rows.refuse_unreachable()


def _model_name(encoder: Encodes) -> str:
    """What loads the encoder again: its folder, absolute so that it is found from elsewhere, or its name."""
    folder = getattr(encoder, "path", None)
    return encoder.name if folder is None else str(Path(folder).resolve())


def _check_wanted(encoder: Encodes, wanted: Wanted, modality: Modality) -> None:
    dim = wanted.truncate_dim
    if dim is not None and (isinstance(dim, bool) or not 1 <= dim <= encoder.dim):
        raise MmclError(f"truncate_dim is {dim}; it must be between 1 and the model's {encoder.dim}")
    if wanted.prompt and modality == "image":
        raise MmclError(f"prompt '{wanted.prompt}': the column holds images; prompts go before texts")


def _open_writer(
    encoder: Encodes,
    reader: SourceReader,
    out: str | Path,
    layout: Layout,
    wanted: Wanted,
) -> VectorWriter:
    """A new or an interrupted folder, which then holds vectors of this very encoder; a line says what will be done."""
    rows, column, modality = reader.rows, reader.column, reader.modality
    if modality not in encoder.modalities:
        known = " and ".join(sorted(encoder.modalities))
        raise MmclError(
            f"{rows.name}: column '{column}' holds {modality}s, model '{encoder.name}' embeds {known} only; "
            "name another column or model"
        )
    if (towers := getattr(encoder, "towers", None)) is not None and len(names := towers.of_modality(modality)) > 1:
        raise MmclError(
            f"{rows.name}: model '{encoder.name}' has several {modality} towers; name one: {' or '.join(names)} "
            "(encoder.select(name), or --tower)"
        )
    source: dict[str, Any] = {
        "name": rows.name,
        "fingerprint": rows.fingerprint,
        "column": column,
        "modality": modality,
        "label_column": reader.label_column,
        "normalized": True,
    }
    if reader.id_column is not None:
        source["id_column"] = reader.id_column
    if words := _prompt_text(encoder, wanted.prompt, modality):
        source["prompt"] = words
    if modality == "image" and getattr(encoder, "exact_decoding", False):
        source["exact_decoding"] = True
    writer = VectorWriter(
        out,
        dim=wanted.truncate_dim or encoder.dim,
        model=_model_name(encoder),
        dtype=layout.dtype,
        source=source,
        shard_rows=layout.shard_rows,
        encoder=encoder.fingerprint() if hasattr(encoder, "fingerprint") else None,
    )
    _check_same_weights(encoder, reader, writer, wanted)
    if writer.complete:
        log.info(f"{writer.folder}: complete already, {writer.count:,} vectors")
    else:
        held = "numbers read as text" if modality == "text" and rows.holds_numbers(column) else modality
        begun = f"; going on at row {writer.rows_done:,}" if writer.rows_done else ""
        log.info(
            f"encoding {len(rows):,} rows of {rows.name} (column '{column}', {held}) "
            f"with {encoder.name} into {writer.folder}{begun}"
        )
    return writer


def _prompt_text(encoder: Encodes, prompt: str | None, modality: Modality) -> str:
    """What is put before every text: a model's prompt may change under its name, or become the default one."""
    words = getattr(encoder, "prompt_text", None) if modality == "text" else None
    return words(prompt) if words else prompt or ""


def _check_same_weights(encoder: Encodes, reader: SourceReader, writer: VectorWriter, wanted: Wanted) -> None:
    """Encode the first rows again: a model trained on under its old name must not complete another's vectors."""
    if not writer.count or writer.same_encoder:
        return
    block = next((block for block in reader.blocks(range(len(reader.rows)), _PROBE_ROWS) if block.inputs), None)
    if block is None:  # the images are gone since: nothing is left to encode either
        return
    again = _encode(encoder, block.inputs, reader.modality, wanted)
    ids, stored = next(open_vectors(writer.folder, partial=True).iter_shards())
    # Of the rows that could be read at the time and still can.
    both = [(place, block.ids.index(str(id_))) for place, id_ in enumerate(ids[: len(again)]) if str(id_) in block.ids]
    then, now = np.array(both, dtype=np.int64).reshape(-1, 2).T
    distances = np.linalg.norm(again[now] - stored[then].astype(np.float32), axis=1)
    if not (distances < _PROBE_DISTANCE).all():
        raise MmclError(
            f"{writer.folder}: '{encoder.name}' now gives other vectors for the first rows than those stored there; "
            "delete the folder or choose another --out"
        )
    if len(then):
        writer.adopt_encoder()


def _encode(encoder: Encodes, inputs: list[Any], modality: Modality, wanted: Wanted) -> np.ndarray:
    if not inputs:
        return np.empty((0, wanted.truncate_dim or encoder.dim), np.float32)
    return encoder.encode(inputs, modality=modality, normalize=True, show_progress=False, **wanted.named())


def _report_skipped(writer: VectorWriter, reader: SourceReader) -> None:
    count = writer.skipped["count"]
    if not count:
        return
    name, first = reader.rows.name, writer.skipped["rows"][0]
    if not writer.count:
        raise MmclError(
            f"{name}: nothing in column '{reader.column}' can be encoded "
            f"(row {first['row']}, id {first['id']!r}: {first['reason']})"
        )
    again = "; --retry-skipped tries them again" if reader.modality == "image" else ""
    log.warning(
        f"{name}: skipped {count:,} in column '{reader.column}' of {len(reader.rows):,} rows "
        f"(first: row {first['row']}, id {first['id']!r}: {first['reason']}); "
        f"they are listed in {writer.folder / 'manifest.json'}{again}"
    )
