"""Files of one format as a memory-mapped Arrow table, which is written into the cache at the first reading."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from mmcl.data.rows import Rows
from mmcl.data.sources.delimited import DelimitedFiles
from mmcl.data.sources.files import FORMATS, fingerprint, format_of, path_text
from mmcl.data.sources.json_files import JsonFiles
from mmcl.data.sources.parquet import ParquetFiles
from mmcl.data.sources.restart import Restart
from mmcl.data.sources.text_files import TextFiles
from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.files import atomic_folder, cache_dir, read_json
from mmcl.runtime.progress import progress

if TYPE_CHECKING:
    import datasets

log = logging.getLogger("mmcl")

_VERSION = 2  # of what is kept: raise it when a reader gives other rows
_LARGE = 50 * 2**20  # bytes of files whose reading takes seconds, and shows a bar
_CHUNK = 1000  # rows: what a scattered read has to touch


class Reader(Protocol):
    """Files of one format.

    Attributes:
        files: where they are.
        notes: what is to be said about them, once they are read.
        unreadable: columns that are left out of the batches, and why.
    """

    files: Sequence[Path]
    notes: list[str]
    unreadable: dict[str, str]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, of one schema. Raises ``Restart`` where all must be read again."""
        ...


@dataclass(frozen=True)
class Loaded:
    """An Arrow table, and the columns that it lacks because they cannot be read, with the reasons."""

    dataset: datasets.Dataset
    unreadable: dict[str, str] = field(default_factory=dict)


def open_tables(files: Sequence[Path], *, name: str, folder: Path, separator: str | None = None) -> Rows:
    """The rows of files of one format, one after the other; paths in them start from ``folder``.

    Raises:
        MmclError: there is no reader for them, they hold no rows or cannot be read, or the cache cannot be written.
        OSError: the disk is full.
    """
    loaded = load_tables(files, name, separator)
    identity = fingerprint(files, *([separator] if separator else []))
    return rows_of(loaded, name=name, fingerprint=identity, folder=folder.resolve())


def rows_of(loaded: Loaded, *, name: str, fingerprint: str, folder: Path | None) -> Rows:
    """``loaded`` as rows. Raises ``MmclError`` if there are none."""
    if len(loaded.dataset) == 0:
        raise MmclError(f"{name}: there are no rows")
    return Rows(loaded.dataset, name=name, fingerprint=fingerprint, folder=folder, unreadable=loaded.unreadable)


def load_tables(files: Sequence[Path], name: str, separator: str | None = None) -> Loaded:
    """Files of one format as one table."""
    import datasets

    form = format_of(files[0])
    if form is None:
        raise MmclError(f"{name}: no reader for '{files[0].suffix}' files; {nearest(files[0].suffix, FORMATS)}")
    files = [file.resolve() for file in files]
    for file in files:
        if file.stat().st_size == 0:
            raise MmclError(f"{path_text(file)}: the file is empty")
    reader = _reader(form, files, separator)
    try:
        entry = cache_dir("tables") / fingerprint(files, _VERSION, separator)
        for attempt in (1, 2):
            if not (entry / "notes.json").is_file():
                with atomic_folder(entry, unless=entry / "notes.json") as part:
                    _write(reader, part, name)
            try:
                loaded = datasets.Dataset.from_file(str(entry / "rows.arrow"))
                notes = read_json(entry / "notes.json")
                break
            except (pa.ArrowException, OSError, MmclError):  # another process or a failing disk has spoilt it
                if attempt == 2:
                    raise
                shutil.rmtree(entry)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        where = error.filename or "the cache"
        reason = error.strerror or error
        raise MmclError(f"{where}: cannot be written: {reason}; set MMCL_CACHE to a folder that can") from error
    for note in notes["notes"]:
        _say(f"{name}: {note}")
    return Loaded(loaded, notes["unreadable"])


def _reader(form: str, files: Sequence[Path], separator: str | None) -> Reader:
    if form in (".csv", ".tsv") or (form == ".txt" and separator is not None):
        return DelimitedFiles(files, "\t" if form == ".tsv" and separator is None else separator)
    if separator is not None:
        raise MmclError(f"{path_text(files[0])}: a separator is of CSV files; leave it out")
    if form == ".parquet":
        return ParquetFiles(files)
    return TextFiles(files) if form == ".txt" else JsonFiles(files)


def _write(reader: Reader, folder: Path, name: str) -> None:
    while True:
        try:
            _write_rows(reader, folder / "rows.arrow", name)
            break
        except Restart:
            reader.notes.clear()
    (folder / "notes.json").write_text(json.dumps({"notes": reader.notes, "unreadable": reader.unreadable}), "utf-8")


def _write_rows(reader: Reader, file: Path, name: str) -> None:
    batches = reader.batches()
    first = next(batches, None)
    if first is None:
        raise MmclError(f"{name}: there are no rows")
    if not first.schema.names:
        column, reason = next(iter(reader.unreadable.items()), ("", "it has no columns"))
        raise MmclError(f"{name}: cannot be read: {f'column {column!r}: ' if column else ''}{reason}")
    if odd := [column for column in first.schema.names if "\0" in column]:  # where others end a name
        raise MmclError(f"{name}: the name of column {odd[0]!r} holds a null character; rename it")
    large = sum(part.stat().st_size for part in reader.files) > _LARGE
    with (
        progress("read", None, "rows", None if large else False) as advance,
        pa.OSFile(str(file), "wb") as sink,
        pa.ipc.new_stream(sink, first.schema) as writer,
    ):
        for batch in itertools.chain([first], batches):
            writer.write_table(pa.Table.from_batches([batch]), max_chunksize=_CHUNK)
            advance(batch.num_rows)


@cache
def _say(text: str) -> None:
    """Once a process: a source may be opened several times in a run."""
    log.warning("%s", text)
