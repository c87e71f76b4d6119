"""CSV and TSV files: a header, and cells that are text as written."""

from __future__ import annotations

import csv
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, count, islice
from pathlib import Path

import pyarrow as pa

from mmcl.data.sources.files import open_text, path_text
from mmcl.data.sources.restart import Restart
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")

_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
_PUNCTUATION = ",;"  # other separators hardly ever stand in a text
_LOOKED_AT = 1000  # lines in which header and first row are looked for
_BLOCK = 10_000
_MOST_COLUMNS = 10_000
_LONGEST = 64 * 2**20  # characters of a field; a quote that nothing closes would read the whole file into one

_EXCEL = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)  # the line that names the separator to a spreadsheet

csv.field_size_limit(_LONGEST)  # from 131,072, for all of the process


class _QuoteError(Exception):
    """A quote that is not closed where its field ends: the line where it opens, and what is wrong."""

    def __init__(self, line: int, reason: str) -> None:
        self.line = line
        self.reason = reason


class DelimitedFiles:
    """Files with the same columns in their headers, quoted as spreadsheets do. Types are not guessed.

    Where quotes do not hold, a quote is a character like any other (sentences begin with ``"`` that nothing closes),
    but an error where commas or semicolons separate. A column without a name is called ``Unnamed: NUMBER``, as in
    pandas; empty cells beyond the header are no cells.
    """

    def __init__(self, files: Sequence[Path], separator: str | None = None) -> None:
        separator = {"\\t": "\t", "tab": "\t"}.get(separator or "", separator)
        if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
            raise MmclError(f"separator {separator!r}: it must be a single character, such as ';' or '\\t'")
        self.files = files
        self.separator = separator
        self.notes: list[str] = []
        self.unreadable: dict[str, str] = {}
        self._unquoted: dict[Path, str] = {}  # files in which quotes are text, and why

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, in the order of the files. Raises ``Restart`` when quotes turn out to be text."""
        columns: list[str] | None = None
        self.notes.extend(self._unquoted.values())
        for file in self.files:
            separator = self.separator or self._sniffed(file)
            try:
                for header, rows in self._blocks(file, separator):
                    columns = columns or header
                    if sorted(columns) != sorted(header):
                        raise MmclError(
                            f"{path_text(file)}: its header differs from that of {self.files[0].name}; "
                            "give the files the same columns"
                        )
                    cells = dict(zip(header, zip(*rows, strict=True), strict=True))
                    yield pa.record_batch({name: pa.array(cells[name], pa.string()) for name in columns})
            except _QuoteError as error:
                where = f"line {error.line}"
                if separator in _PUNCTUATION:
                    raise MmclError(
                        f"{path_text(file)}: {where}: the quote that opens there {error.reason}; put a field that has "
                        'quotes in quotes, each of them doubled: "say ""hi"""'
                    ) from None
                self._unquoted[file] = (
                    f"{where} of {file.name} opens a quote that {error.reason}: quotes are read as text"
                )
                raise Restart from None

    def _sniffed(self, file: Path) -> str:
        """What separates the fields: commas unless header and row then differ, or are a single field, and by another
        separator are neither."""
        with open_text(file) as lines:
            head = list(islice(lines, _LOOKED_AT))
        if head and (named := _EXCEL.fullmatch(head[0])):
            return named[1]
        for separator, called in _SEPARATORS.items():
            reader = csv.reader(head, delimiter=separator, skipinitialspace=separator == "|")
            try:
                header, first = [*islice(filter(None, reader), 2), [], []][:2]
            except csv.Error:
                continue
            if len(header) == len(first) > 1:
                if separator != ",":
                    log.info("%s: read as separated by %s", path_text(file), called)
                return separator
        return ","

    def _blocks(self, file: Path, separator: str) -> Iterator[tuple[list[str], list[list[str | None]]]]:
        """The header, again and again, with rows as long as it."""
        records = _records(file, separator, quoted=file not in self._unquoted)
        header: list[str] = []
        rows: list[list[str | None]] = []
        short, swallowed, number = [0, 0], [0, 0], 0  # how many, and the first one's line
        for line, lines, record in records:
            if not header:
                if line > 1 or not _EXCEL.fullmatch(separator.join(record)):
                    header, named = _header(record, file)
                continue
            if len(record) == 1 and len(header) > 1 and not record[0].strip():
                continue
            number += 1
            if number == 1 and separator not in _PUNCTUATION and len(record) == len(header) + 1 and record[-1].strip():
                header, named = _header(["", *header], file)  # R's write.table names rows, and no column for them
            while len(record) > len(header) and not record[-1].strip():
                record.pop()
            if len(record) > len(header):
                raise MmclError(
                    f"{path_text(file)}: line {line} has {len(record)} fields, the header {len(header)}; "
                    f"{_cure(number, record, header)}"
                )
            if len(record) < named:
                short = [short[0] + 1, short[1] or line]
            if lines and _like_rows(lines, separator, len(header)):
                if separator not in _PUNCTUATION:
                    raise _QuoteError(line, f"would run over rows up to line {line + len(lines) - 1}")
                swallowed = [swallowed[0] + 1, swallowed[1] or line]
            rows.append([*record, *[None] * (len(header) - len(record))])
            if len(rows) == _BLOCK:
                yield header, rows
                rows = []
        if rows:
            yield header, rows
        if not number:
            raise MmclError(f"{path_text(file)}: there are no rows{' below the header' if header else ''}")
        if short[0]:
            self.notes.append(
                f"{short[0]:,} of {number:,} rows of {file.name} have fewer fields than the header, the first in line "
                f"{short[1]}: what they lack is empty"
            )
        if swallowed[0]:
            self.notes.append(
                f"{swallowed[0]:,} quoted fields of {file.name} hold lines that look like rows, the first from line "
                f"{swallowed[1]} on; if that quote is text, write it doubled and in quotes"
            )


def _cure(number: int, record: Sequence[str], header: Sequence[str]) -> str:
    """What to do about row ``number``, which has more fields than the header."""
    if any(field.lstrip() != field and field.lstrip()[:1] == '"' for field in record):
        return "no blank may stand between a separator and the quote behind it"
    if number == 1 and len(record) == len(header) + 1:
        return "quote fields that contain the separator; if rows begin with their names, name that column too"
    return "quote fields that contain the separator"


def _header(record: Sequence[str], file: Path) -> tuple[list[str], int]:
    """Names of the columns, and how many of them up to the last that is named in the file."""
    if len(record) > _MOST_COLUMNS:
        raise MmclError(f"{path_text(file)}: the header has {len(record):,} fields; is it one?")
    names = list(record)
    for place, name in enumerate(record):
        if not name.strip():
            free = (f"Unnamed: {place}{suffix}" for suffix in chain([""], (f".{number}" for number in count(1))))
            names[place] = next(name for name in free if name not in record)
    if repeated := sorted(name for name, times in Counter(names).items() if times > 1):
        raise MmclError(f"{path_text(file)}: the header names {repeated[0]!r} twice; rename one")
    return names, max((place for place, name in enumerate(record, 1) if name.strip()), default=len(names))


def _like_rows(lines: Sequence[str], separator: str, fields: int) -> bool:
    """Whether the lines of a record are rows, as far as the number of separators says."""
    if fields == 1:
        return True
    if separator not in _PUNCTUATION:
        return sum(line.count(separator) for line in lines) > fields - 1
    rows = [line.count(separator) == fields - 1 for line in lines]
    return any(rows[1:-1]) or all(rows)


def _records(file: Path, separator: str, *, quoted: bool) -> Iterator[tuple[int, list[str], list[str]]]:
    """The first line of each record that is not blank, its lines if it has several, and its fields."""
    with open_text(file) as lines:
        kept: list[str] = []

        def feed() -> Iterator[str]:
            for line in lines:
                kept.append(line)
                yield line

        spaced = separator == "|"
        reader = csv.reader(
            feed(),
            delimiter=separator,
            strict=True,
            quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
            skipinitialspace=spaced,
        )
        number = 0
        while True:
            kept.clear()
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if not quoted:
                    raise MmclError(f"{path_text(file)}: line {number + 1}: {error}") from error
                raise _QuoteError(number + _opening(kept, separator), _reason(error)) from None
            number += len(kept)
            if record:
                several = kept.copy() if len(kept) > 1 else []
                yield number - len(kept) + 1, several, [field.strip() for field in record] if spaced else record


def _reason(error: csv.Error) -> str:
    if "unexpected end" in str(error):
        return "is never closed"
    if "field larger" in str(error):
        return f"is not closed within {_LONGEST // 2**20} million characters"
    return "closes before its field ends"


def _opening(lines: Sequence[str], separator: str) -> int:
    """In which of the lines of a record, from 1, the quote opens that is not closed where its field ends."""
    opened, inside, start = 1, False, True
    for number, line in enumerate(lines, 1):
        place = 0
        while place < len(line):
            character = line[place]
            if inside:
                if character == '"':
                    following = line[place + 1 : place + 2]
                    if following == '"':
                        place += 1
                    elif following in (separator, "\r", "\n", ""):
                        inside = False
                    else:
                        return opened
            elif start and character == '"':
                opened, inside = number, True
            start = character == separator
            place += 1
        start = start or not inside
    return opened
