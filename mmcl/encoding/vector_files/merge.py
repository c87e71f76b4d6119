"""Vectors of one model, from several places, in one folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmcl.encoding.corpora.vectors import Vectors
from mmcl.encoding.corpora.writer import VectorWriter
from mmcl.encoding.vector_files.file_vectors import FileVectors
from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.files import atomic_folder, folder_to_write
from mmcl.runtime.progress import progress

Duplicates = Literal["refuse", "first", "prefix"]
_ROWS = 16_384
_OWN = ("id", "label")

log = logging.getLogger("mmcl")


def merge(
    sources: Sequence[Vectors | FileVectors],
    out: str | Path,
    *,
    duplicates: Duplicates = "refuse",
    show_progress: bool | None = None,
) -> None:
    """Write the vectors of several folders or files into a new folder, in their order, completely or not at all.

    Args:
        sources: of one dimension and, as far as they say, of one model with one prompt.
        out: a folder that does not exist or is empty.
        duplicates: ids that are in several sources: ``refuse`` them; keep the vectors of the ``first`` source that has
            one; or ``prefix`` every id with the name of its source: ``books/17``. Within a source, ids may be equal.
        show_progress: a bar on stderr; None shows it on a terminal.

    Raises:
        MmclError: sources of different models, prompts or dimensions, ids in several of them, or ``out`` is in use.
        OSError: the disk is full.
    """
    if duplicates not in get_args(Duplicates):
        raise MmclError(f"--duplicates {duplicates}: {nearest(str(duplicates), get_args(Duplicates))}")
    folder = folder_to_write(out)
    if folder.exists() and any(folder.iterdir()):
        raise MmclError(f"{folder}: exists and is not empty; delete it or choose another --out")
    if not sources:
        raise MmclError("nothing to merge; name one folder of vectors or several")
    _check_alike(sources)
    tables = _tables(sources, duplicates)
    kept = _kept(sources, tables, duplicates)
    common = _common(sources, tables)
    labels = any("label" in table.column_names for table in tables)
    first, total = sources[0], sum(map(len, sources))
    halves = all(source.dtype == np.float16 for source in sources)
    with (
        progress("merge", total, "vectors", show_progress) as advance,
        atomic_folder(folder) as beside,
        VectorWriter(
            beside,
            dim=first.dim,
            model=next((source.model for source in sources if source.model), None),
            encoder=next((source.encoder for source in sources if source.encoder), None),
            dtype="float16" if halves else "float32",
            source=_source(sources),
        ) as writer,
    ):
        for source, table, keep in zip(sources, tables, kept, strict=True):
            start = 0
            for _, shard in source.iter_shards():
                for at in range(0, len(shard), _ROWS):
                    block = shard[at : at + _ROWS]
                    rows, wanted = table.slice(start, len(block)), keep[start : start + len(block)]
                    rows = rows.filter(pa.array(wanted))
                    columns = {name: rows[name] for name in common}
                    writer.append(rows["id"], block[wanted], _labels(rows) if labels else None, columns=columns)
                    start += len(block)
                    advance(len(block))


def _labels(rows: pa.Table) -> list[str | None]:
    return rows["label"].to_pylist() if "label" in rows.column_names else [None] * len(rows)


def _check_alike(sources: Sequence[Vectors | FileVectors]) -> None:
    """Raise ``MmclError`` unless all vectors can be compared with each other."""
    first = sources[0]
    for source in sources[1:]:
        if source.dim != first.dim:
            raise MmclError(
                f"{source.folder}: vectors of dimension {source.dim}, those of {first.folder} of {first.dim}"
            )
    known = [source for source in sources if source.encoder]
    for source in known[1:]:
        for key, what in (("weights", "other weights or settings"), ("prompt", "another prompt")):
            if source.encoder[key] != known[0].encoder[key]:  # type: ignore[index]
                raise MmclError(f"{source.folder}: its vectors are by {what} than those of {known[0].folder}")
    named = [source for source in sources if source.model and not source.encoder]
    for source in named:
        other = next(iter((*known, *named)))
        if source.model != other.model:
            raise MmclError(f"{source.folder}: vectors by '{source.model}', those of {other.folder} by '{other.model}'")
    for source in sources:
        like = next(other for other in sources if other.source.get("modality") == source.source.get("modality"))
        if source.source.get("prompt") != like.source.get("prompt"):
            raise MmclError(
                f"{source.folder}: made with the prompt {source.source.get('prompt')!r}, those of {like.folder} with "
                f"{like.source.get('prompt')!r}"
            )
    if 0 < len(unknown := [source for source in sources if not source.encoder and not source.model]) < len(sources):
        log.warning(f"{unknown[0].folder}: does not say which model made its vectors; taken for one of the same")


def _tables(sources: Sequence[Vectors | FileVectors], duplicates: Duplicates) -> list[pa.Table]:
    """Ids, of one kind and prefixed if so wanted, and what else there is."""
    tables = [source.table() for source in sources]
    of_numbers = all(pa.types.is_integer(table["id"].type) for table in tables)
    if of_numbers and duplicates != "prefix":
        return tables
    names = [source.folder.stem for source in sources]
    if len(set(names)) < len(names):
        names = [str(source.folder) for source in sources]
    found = []
    for name, table in zip(names, tables, strict=True):
        ids = table["id"].cast(pa.large_string())
        if duplicates == "prefix":
            ids = pc.binary_join_element_wise(
                pa.scalar(name, pa.large_string()), ids, pa.scalar("/", pa.large_string())
            )
        found.append(table.set_column(table.schema.get_field_index("id"), "id", ids))
    return found


def _kept(
    sources: Sequence[Vectors | FileVectors], tables: Sequence[pa.Table], duplicates: Duplicates
) -> list[np.ndarray]:
    """Which vectors of each source are written, (n,) bool."""
    kept = []
    for number, table in enumerate(tables):
        earlier = pa.chunked_array(
            [chunk for other in tables[:number] for chunk in other["id"].chunks], table["id"].type
        )
        again = np.asarray(pc.is_in(table["id"], value_set=earlier.combine_chunks()), dtype=bool)
        if count := int(again.sum()):
            name, id_ = sources[number].folder, table["id"][int(np.argmax(again))].as_py()
            if duplicates != "first":
                raise MmclError(
                    f"{name}: {count:,} ids are in an earlier source too, such as {id_!r}; --duplicates first leaves "
                    "these out, prefix puts the name of its source before every id"
                )
            log.warning(f"{name}: {count:,} vectors left out, whose ids are in an earlier source too, such as {id_!r}")
        kept.append(~again)
    return kept


def _common(sources: Sequence[Vectors | FileVectors], tables: Sequence[pa.Table]) -> list[str]:
    """The columns of metadata that all sources have, of one type; others are said to be left out."""
    fields = [{field.name: field.type for field in table.schema if field.name not in _OWN} for table in tables]
    common = [name for name, kind in fields[0].items() if all(other.get(name) == kind for other in fields)]
    for source, here in zip(sources, fields, strict=True):
        if others := [name for name in here if name not in common]:
            log.warning(f"{source.folder}: left out, since not all have them: the columns {', '.join(others)}")
    return common


def _source(sources: Sequence[Vectors | FileVectors]) -> dict[str, Any]:
    """What the sources have in common, and their names."""
    first = sources[0].source
    common = {key: value for key, value in first.items() if all(s.source.get(key) == value for s in sources)}
    return common | {"name": " + ".join(str(source.source.get("name") or source.folder) for source in sources)}
