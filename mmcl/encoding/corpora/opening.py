"""Opening the folder that a corpus is to be encoded into, new or begun, after a look at all that was asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmcl.data.images import decode
from mmcl.data.rows import Rows
from mmcl.data.sources.tar.rows import ShardRows
from mmcl.encoding.corpora.folder import new_manifest, open_folder
from mmcl.encoding.corpora.job import Embeds, Job, Part
from mmcl.encoding.corpora.manifest import with_described, write_manifest
from mmcl.encoding.corpora.ranges import Ranges
from mmcl.encoding.corpora.reader import Modality, SourceReader, Windows, modality_of, pieces
from mmcl.encoding.corpora.settings import USUAL, Columns, Encodes, Layout, Wanted
from mmcl.encoding.corpora.stored import read_table
from mmcl.encoding.corpora.vectors import open_vectors
from mmcl.encoding.prompts import document_prompt, document_tower
from mmcl.runtime.device import Devices, pick_devices
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import as_path
from mmcl.runtime.lock import exclusive

_PROBE_ROWS = 8
# Of unit vectors: bfloat16 here and float32 where the run began put MiniLM's 0.01 apart, those of 24 dimensions 0.02.
# What stands beside a text in bfloat16, float16 or int8 on disk and TF32 change less.
_PROBE_DISTANCE = 0.03

log = logging.getLogger("mmcl")


def open_job(
    encoder: Encodes,
    rows: Rows | ShardRows,
    columns: str | Columns,
    out: str | Path,
    *,
    layout: Layout = USUAL,
    prompt: str | None = None,
    truncate_dim: int | None = None,
    on_error: Literal["skip", "fail"] = "skip",
) -> Job:
    """Begin the folder ``out``, or open it again, to encode into it range by range: see
    :func:`mmcl.encoding.corpora.job.encode_range`. A line says what is to be done.

    Args:
        encoder: as for :func:`encode_source`, as are the others.
        rows: see there.
        columns: see there.
        out: see there.
        layout: see there.
        prompt: see there.
        truncate_dim: see there.
        on_error: see there.

    Raises:
        MmclError: as :func:`encode_source`.
    """
    columns = Columns(columns) if isinstance(columns, str) else columns
    fields, images = _table_fields(encoder, rows) if columns.modality == "table" else ([], [])
    rows.require([name for name in (*(fields or [columns.inputs]), columns.labels, columns.ids) if name is not None])
    modality = columns.modality or modality_of(rows, columns.inputs)
    (shard_rows, block_rows), prepare = layout.rows(modality, len(rows)), getattr(encoder, "prepare_image", decode)
    if modality == "text" and (tower := document_tower(encoder)) is not None:
        encoder = encoder.select(tower)  # type: ignore[attr-defined]
    if prompt is None and modality == "text":
        prompt = document_prompt(encoder)
    wanted, inputs = Wanted(prompt, truncate_dim), ", ".join(fields) or columns.inputs
    windows = _windows(encoder, layout, prompt, modality)
    reader = SourceReader(
        rows, inputs, modality, columns.labels, columns.ids, prepare, fields, images, windows, layout.long == "chunk"
    )
    _check_wanted(encoder, wanted, reader)
    folder, embeds = as_path(out), _embeds(encoder, modality, wanted, layout.devices)
    manifest = new_manifest(
        folder,
        dim=truncate_dim or encoder.dim,
        model=_model_name(encoder),
        dtype=layout.dtype,
        source=_source(encoder, reader, wanted, layout),
        encoder=encoder.fingerprint() if hasattr(encoder, "fingerprint") else None,
        shard_rows=shard_rows,
    )
    with exclusive(folder, "opening", wait=True):
        found, same_encoder = open_folder(folder, manifest)
        ranges = Ranges.of(folder, found, len(rows), shard_rows)
        job = Job(reader, embeds, ranges, found["dim"], found["dtype"], min(block_rows, ranges.size), on_error)
        if found["shards"]:
            job.keep = frozenset(read_table(folder / f"{found['shards'][0]['name']}.ids.parquet").column_names)
        if not same_encoder:
            _check_same_weights(encoder, job, found, manifest["encoder"])
    _say_what_is_done(encoder, job, found)
    return job


def usual_column(encoder: Encodes, rows: Rows | ShardRows) -> str:
    """The column ``image``, else ``text``, of what the encoder embeds. Raises ``MmclError`` if there is neither."""
    usual = [name for name in ("image", "text") if name in encoder.modalities]
    for name in usual:
        if name in rows.column_names:
            return name
    raise MmclError(
        f"{rows.name}: no column {' or '.join(usual) or 'text'}; name what to encode with --column; it has "
        f"{', '.join(rows.column_names)}"
    )


def _windows(encoder: Encodes, layout: Layout, prompt: str | None, modality: Modality) -> Windows | None:
    """What cuts long texts, if they are to be cut into windows."""
    if layout.long == "truncate":
        return None
    if layout.long not in ("chunk", "windows"):
        raise MmclError(f"long is '{layout.long}'; use truncate, chunk or windows")
    if modality != "text" or not hasattr(encoder, "windows"):
        raise MmclError(f"long '{layout.long}' is for texts, by a model that tells where to cut them; leave it out")
    cut: Windows = partial(encoder.windows, prompt=prompt, overlap=layout.overlap)
    cut([])  # refuses an overlap before anything is written
    return cut


def _embeds(encoder: Encodes, modality: Modality, wanted: Wanted, devices: Devices | None) -> Embeds:
    def in_blocks(inputs: Iterable[list[Any]]) -> Iterator[Part]:
        for part in encoder.encode_blocks(inputs, modality, devices=devices, **wanted.named()):  # type: ignore[attr-defined]
            yield Part(part.vectors, int(part.cut.sum()))

    def one_by_one(inputs: Iterable[list[Any]]) -> Iterator[Part]:
        for some in inputs:
            vectors = encoder.encode(some, modality=modality, normalize=True, show_progress=False, **wanted.named())
            yield Part(vectors, None)

    if devices is not None:
        pick_devices(devices)  # before anything is written
    if hasattr(encoder, "encode_blocks"):
        return in_blocks
    if devices is not None:
        raise MmclError(f"devices: '{encoder.name}' cannot be copied to other processes; leave them out")
    return one_by_one


def _table_fields(encoder: Encodes, rows: Rows | ShardRows) -> tuple[list[str], list[str]]:
    """The columns that the only table tower of an encoder reads, and those of images among them."""
    towers = getattr(encoder, "towers", None)
    if not isinstance(rows, Rows) or towers is None or "table" not in towers.modalities:
        raise MmclError(f"{rows.name}: rows of tables are encoded by a model with a tower of them, and not as a stream")
    processor = towers.embedder("table").processor
    return processor.columns, processor.images


def _model_name(encoder: Encodes) -> str:
    """What loads the encoder again: its folder, absolute so that it is found from elsewhere, or its name."""
    folder = getattr(encoder, "path", None)
    return encoder.name if folder is None else str(Path(folder).resolve())


def _check_wanted(encoder: Encodes, wanted: Wanted, reader: SourceReader) -> None:
    dim, rows, modality = wanted.truncate_dim, reader.rows, reader.modality
    if dim is not None and (isinstance(dim, bool) or not 1 <= dim <= encoder.dim):
        raise MmclError(f"truncate_dim is {dim}; it must be between 1 and the model's {encoder.dim}")
    if wanted.prompt and modality == "image":
        raise MmclError(f"prompt '{wanted.prompt}': the column holds images; prompts go before texts")
    if modality not in encoder.modalities:
        known = " and ".join(sorted(encoder.modalities))
        raise MmclError(
            f"{rows.name}: column '{reader.column}' holds {modality}s, model '{encoder.name}' embeds {known} only; "
            "name another column or model"
        )
    if (towers := getattr(encoder, "towers", None)) is not None and len(names := towers.of_modality(modality)) > 1:
        raise MmclError(
            f"{rows.name}: model '{encoder.name}' has several {modality} towers; name one: {' or '.join(names)} "
            "(encoder.select(name), or --tower)"
        )


def _source(encoder: Encodes, reader: SourceReader, wanted: Wanted, layout: Layout) -> dict[str, Any]:
    """What tells these vectors from others by the same model."""
    source: dict[str, Any] = {
        "name": reader.rows.name,
        "fingerprint": reader.rows.fingerprint,
        "column": reader.column,
        "modality": reader.modality,
        "label_column": reader.label_column,
        "normalized": True,
    }
    if reader.id_column is not None:
        source["id_column"] = reader.id_column
    if words := _prompt_text(encoder, wanted.prompt, reader.modality):
        source["prompt"] = words
    if reader.modality == "image" and getattr(encoder, "exact_decoding", False):
        source["exact_decoding"] = True
    if reader.modality == "image" and getattr(encoder, "fast_resize", False):
        source["fast_resize"] = True
    if layout.long != "truncate":
        source |= {"long": layout.long, "overlap": layout.overlap}
    return source


def _say_what_is_done(encoder: Encodes, job: Job, manifest: dict[str, Any]) -> None:
    rows, column, modality = job.reader.rows, job.reader.column, job.reader.modality
    if manifest["complete"]:
        log.info(f"{job.folder}: complete already, {manifest['count']:,} vectors")
        return
    held = "numbers read as text" if modality == "text" and rows.holds_numbers(column) else modality
    shards, missing = len(job.ranges.numbers), len(job.missing())
    begun = f"; {missing:,} of {shards:,} shards are missing" if missing < shards else ""
    log.info(
        f"encoding {len(rows):,} rows of {rows.name} (column '{column}', {held}) "
        f"with {encoder.name} into {job.folder}{begun}"
    )


def _prompt_text(encoder: Encodes, prompt: str | None, modality: Modality) -> str:
    """What is put before every text: a model's prompt may change under its name, or become the default one."""
    words = getattr(encoder, "prompt_text", None) if modality == "text" else None
    return words(prompt) if words else prompt or ""


def _check_same_weights(
    encoder: Encodes, job: Job, manifest: dict[str, Any], fingerprint: dict[str, str] | None
) -> None:
    """Encode some rows again: a model trained on under its old name must not complete another's vectors. A fingerprint
    that the folder lacks is added once they are found to be the encoder's."""
    shards = with_described(job.folder, manifest)["shards"]
    if not shards:
        return
    rows = range(shards[0]["start"] or 0, len(job.reader.rows))
    again = ((block, part) for block, part in job.embedded(job.reader.blocks(pieces(rows, _PROBE_ROWS))) if block.ids)
    found = next(again, None)
    if found is None:  # the images are gone since: nothing is left to encode either
        return
    block, part = found
    ids, stored = next(open_vectors(job.folder, partial=True).iter_shards())
    # Of the rows that could be read at the time and still can.
    now, then = (_first_places(map(str, some)) for some in (block.ids, ids[: len(block.ids)]))
    both = [(now[id_], then[id_]) for id_ in now.keys() & then.keys()]
    here, there = np.array(both, dtype=np.int64).reshape(-1, 2).T
    distances = np.linalg.norm(part.vectors[here] - stored[there].astype(np.float32), axis=1)
    if not (distances < _PROBE_DISTANCE).all():
        raise MmclError(
            f"{job.folder}: '{encoder.name}' now gives other vectors for the first rows than those stored there; "
            "delete the folder or choose another --out"
        )
    if both and fingerprint is not None and manifest["encoder"] is None:
        write_manifest(job.folder, manifest | {"encoder": fingerprint})


def _first_places(ids: Iterable[str]) -> dict[str, int]:
    places: dict[str, int] = {}
    for place, id_ in enumerate(ids):
        places.setdefault(id_, place)
    return places
