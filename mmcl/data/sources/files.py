"""The files of a source: their formats, how they are opened, and what identifies their content."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from mmcl.runtime.errors import MmclError

FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt")
_BOMS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def format_of(file: Path) -> str | None:
    """The format that a file's name ends in, ``.gz`` apart; None if there is no reader for it."""
    suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
        return suffixes[-1] if suffixes and suffixes[-1] in FORMATS and suffixes[-1] != ".parquet" else None
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def stem_of(file: Path) -> str:
    """A file's name without the suffixes that :func:`format_of` reads."""
    return Path(file.stem).stem if file.suffix.lower() == ".gz" else file.stem


def path_text(path: str | Path) -> str:
    """A path for messages and tables: bytes of its name that are no UTF-8 are written as ``\\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def fingerprint(files: Sequence[Path], *more: object) -> str:
    """From paths, sizes and times of change: reading a hundred gigabytes only to name them would take minutes."""
    stats = [(file.resolve(), file.stat()) for file in files]
    state = [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    return hashlib.blake2b(repr((state, more)).encode(), digest_size=16).hexdigest()


@contextmanager
def open_bytes(file: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed if its name ends in ``.gz``.

    Raises:
        MmclError: it cannot be opened, or is damaged, here or while the block reads on.
    """
    compressed = file.suffix.lower() == ".gz"
    try:
        with file.open("rb") as plain:
            if compressed:
                with gzip.GzipFile(fileobj=plain) as opened:
                    yield cast(BinaryIO, opened)
            else:
                yield plain
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise MmclError(f"{path_text(file)}: damaged gzip file ({error}); take a fresh copy") from error
    except OSError as error:
        raise MmclError(f"{path_text(file)}: cannot be read: {error.strerror or error}") from error


@contextmanager
def open_text(file: Path) -> Iterator[io.TextIOWrapper]:
    """A UTF-8 file (or one of UTF-16 with a byte order mark) as text, its line ends as they are.

    Raises:
        MmclError: as :func:`open_bytes`; or its bytes are not text.
    """
    with open_bytes(file) as head:
        encoding = _BOMS.get(head.read(2), "utf-8-sig")
    try:
        with open_bytes(file) as opened, io.TextIOWrapper(opened, encoding=encoding, newline="") as text:
            yield text
    except UnicodeError as error:
        raise MmclError(f"{path_text(file)}: {_undecodable(file) or error}; save it as UTF-8") from error


def _undecodable(file: Path) -> str | None:
    with open_bytes(file) as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"line {number} is not UTF-8 text ({error.reason}: byte 0x{line[error.start]:02x})"
    return None
