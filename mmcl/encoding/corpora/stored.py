"""What indexes and vectors on disk share: a JSON file that describes a folder, its files' checksums, tables of ids."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import sha256_file, write_json
from mmcl.runtime.printable import short_repr
from mmcl.runtime.version import __version__

T = TypeVar("T", bound="Stored")


def write_description(path: Path, format: str, version: int, content: dict[str, Any]) -> None:
    """Write ``content`` as JSON, headed by what it describes, its format's version, and mmcl's."""
    head = {"format": format, "format_version": version, "mmcl_version": __version__}
    write_json(path, head | content)


def read_description(path: Path, format: str, version: int, made_by: str) -> dict[str, Any]:
    """Read what :func:`write_description` wrote.

    Raises:
        MmclError: the file is missing or damaged, describes something else, or a newer mmcl wrote it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MmclError(f"{path.parent}: no {path.name} here, so this is no {format} folder; {made_by}") from None
    except NotADirectoryError:
        raise MmclError(f"{path.parent} is a file, not a {format} folder; {made_by}") from None
    except (ValueError, RecursionError) as error:
        raise MmclError(f"{path}: damaged, not valid JSON ({error}); {made_by}") from None
    if not isinstance(content, dict) or content.get("format") != format:
        raise MmclError(f"{path}: does not describe a {format} folder; {made_by}")
    written = content.get("format_version")
    if type(written) is not int:
        raise MmclError(f"{path}: damaged, 'format_version' is {written!r} and no number; {made_by}")
    if written > version:
        raise MmclError(
            f"{path}: written by a newer mmcl ({content.get('mmcl_version')}, format {written}; "
            f"this is {__version__}, format {version}); upgrade with: pip install -U mmcl"
        )
    return content


class Stored(BaseModel):
    """Entries of a description, each of its type."""

    model_config = ConfigDict(strict=True)


class FileRecord(Stored):
    """Size in bytes and SHA-256 of a file."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: str


class Fingerprint(Stored):
    """What tells an encoder from others: a hash of its weights and settings, and the prompt it puts before a text for
    which none is named."""

    weights: str
    prompt: str


class CorpusFingerprint(Fingerprint):
    """That of vectors: of texts, also what the encoder put before each of these."""

    documents: str | None = None


def same_origin(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two fingerprints are of the same vectors; one that an older mmcl wrote knows no ``documents``."""
    known = [{name: value for name, value in each.items() if value is not None} for each in (one, other)]
    return all(known[0][name] == known[1][name] for name in known[0].keys() & known[1].keys())


def validated(model: type[T], content: dict[str, Any], path: Path, cure: str) -> T:
    """The entries of a description as ``model``.

    Raises:
        MmclError: one is missing or of another type.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        what = "missing" if first["type"] == "missing" else f"{first['input']!r:.40}"
        raise MmclError(f"{path}: damaged, '{'.'.join(map(str, first['loc']))}' is {what}; {cure}") from None


def near(folder: Path, model: str | None) -> str | None:
    """Where a model in a folder or file lies, seen from ``folder``; None for a name."""
    return os.path.relpath(model, folder.resolve()) if model is not None and Path(model).is_absolute() else None


def found_model(folder: Path, model: str | None, near: str | None) -> str | None:
    """The model of ``folder``: where it was, or, if it has gone from there, where :func:`near` says, if it is there."""
    if model is None or near is None or Path(model).exists():
        return model
    moved = (folder / near).resolve()
    return str(moved) if moved.exists() else model


def file_record(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file, to be kept in a description."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def check_file(path: Path, record: dict[str, Any], *, checksum: bool, cure: str) -> None:
    """Compare a file with its record: the size always, every byte with ``checksum``.

    Raises:
        MmclError: naming the file that is missing, of another size, or of other content.
    """
    if not path.is_file():
        raise MmclError(f"{path}: missing; {cure}")
    if (size := path.stat().st_size) != record["bytes"]:
        raise MmclError(f"{path}: damaged, {size:,} bytes instead of {record['bytes']:,}; {cure}")
    if checksum and sha256_file(path) != record["sha256"]:
        raise MmclError(f"{path}: damaged, its SHA-256 is not the one recorded; {cure}")


def id_table(ids: Any, count: int, labels: Sequence[str | None] | None = None) -> pa.Table:
    """A table with the column ``id`` (int64 or string) and, if given, ``label``: a caption or a path to show.

    Raises:
        MmclError: not ``count`` ids or labels, or ids that are neither all integers nor all strings.
    """
    columns = {"id": id_array(ids)}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.large_string())
    for name, column in columns.items():
        if len(column) != count:
            raise MmclError(f"{len(column):,} {name}s for {count:,} vectors; give one for each")
    return pa.table(columns)


def id_array(ids: Any) -> pa.Array:
    """Ids as int64 or strings. Raises ``MmclError`` for others, for None among them, and for a single one."""
    if isinstance(ids, str | bytes) or not hasattr(ids, "__iter__"):
        raise MmclError(f"ids are {short_repr(ids, 40)}; give a list of them")
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    try:
        array = ids if isinstance(ids, pa.Array) else pa.array(np.asarray(ids) if _is_tensor(ids) else ids)
        if pa.types.is_integer(array.type):
            array = array.cast(pa.int64())
        elif pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            array = array.cast(pa.large_string())
        elif len(array) == 0:
            array = pa.array([], pa.int64())
        else:
            raise MmclError(f"ids must be all integers or all strings, not {array.type}")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise MmclError(f"ids must be all integers (64-bit) or all strings: {error}") from None
    if array.null_count:
        raise MmclError(f"{array.null_count:,} ids are None; every vector needs one")
    return array


def _is_tensor(ids: Any) -> bool:
    return hasattr(ids, "__array__") and not isinstance(ids, np.ndarray)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table of ids as Parquet."""
    pq.write_table(table, path, compression="zstd")


def read_table(path: Path) -> pa.Table:
    """Read a table of ids.

    Raises:
        MmclError: the file is no Parquet file, or has no column ``id``.
    """
    try:
        with pq.ParquetFile(path) as file:  # read_table() would import pandas first
            table = file.read()
        table.validate(full=True)  # bytes that are no UTF-8, among others
    except FileNotFoundError:
        raise MmclError(f"{path}: missing") from None
    except Exception as error:  # what a damaged file raises is of many kinds
        reason = str(error).splitlines() or [type(error).__name__]
        raise MmclError(f"{path}: cannot be read as Parquet ({reason[0]:.200})") from None
    if "id" not in table.column_names:
        raise MmclError(f"{path}: has no column 'id', only {', '.join(table.column_names)}")
    kinds = {"id": (pa.types.is_int64, pa.types.is_large_string), "label": (pa.types.is_large_string,)}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if name in kinds and not any(is_kind(column.type) for is_kind in kinds[name]):
            raise MmclError(f"{path}: damaged, its column '{name}' holds {column.type}")
        if name == "id" and column.null_count:
            raise MmclError(f"{path}: damaged, {column.null_count:,} ids are missing")
    return table


def to_numpy(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Ids as int64, or as an object array of Python strings."""
    return ids.to_numpy() if isinstance(ids, pa.ChunkedArray) else ids.to_numpy(zero_copy_only=False)
