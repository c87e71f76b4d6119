"""JSON lines, and JSON files that hold a list of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmcl.data.sources.files import format_of, open_bytes, path_text
from mmcl.data.sources.json_types import infer, keys_of, to_array, unify
from mmcl.data.sources.restart import Restart
from mmcl.runtime.errors import MmclError

_BLOCK_ROWS = 1000
_BLOCK_BYTES = 16 * 2**20
_MOST_COLUMNS = 10_000
_BOM = b"\xef\xbb\xbf"


class JsonFiles:
    """Files of which every row is a JSON object. Keys may come and go, and types are those of the whole column.

    A column whose values no type can hold is left out, and noted with the line where that shows.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self.notes: list[str] = []
        self.unreadable: dict[str, str] = {}
        self._types: dict[str, pa.DataType] = {}

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows. When a block widens the types of those before it, the rest is only scanned, and ``Restart``
        raised."""
        widened = given = False
        for places, values in self._blocks():
            known = dict(self._types), set(self.unreadable)
            self._learn(places, values)
            widened |= given and (known != (self._types, set(self.unreadable)))
            if not widened:
                yield self._batch(places, values)
                given = True
        if widened:
            raise Restart

    def _learn(self, places: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
        """Widen the types by those of a block."""
        columns = keys_of(rows)
        if len({*columns, *self._types}) > _MOST_COLUMNS:
            raise MmclError(f"{places[-1]}: more than {_MOST_COLUMNS:,} different keys by then; are they columns?")
        for column in columns:
            if column in self.unreadable:
                continue
            values = [row.get(column) for row in rows]
            known = self._types.get(column, pa.null())
            try:
                self._types[column] = _widened(known, values)
                if self._types[column] != known:  # else converting says so just as well
                    to_array(values, self._types[column])
            except (ValueError, pa.ArrowException):
                self._leave_out(column, places, values, known)

    def _leave_out(self, column: str, places: Sequence[str], values: Sequence[Any], known: pa.DataType) -> None:
        """Note the first value that does not fit those before it."""
        self._types.pop(column, None)
        reason = "its values do not fit together"
        for place, value in zip(places, values, strict=True):
            try:
                known = _widened(known, [value])
                to_array([value], known)
            except UnicodeEncodeError:  # an escape such as \ud83d without its other half
                reason = f"{place} has half of a surrogate pair; write the character whole"
                break
            except (ValueError, pa.ArrowException) as error:
                reason = f"{place}: {' '.join(str(error).split())}"
                break
        self.unreadable[column] = reason

    def _batch(self, places: Sequence[str], rows: Sequence[dict[str, Any]]) -> pa.RecordBatch:
        arrays = {}
        for column, kind in list(self._types.items()):
            values = [row.get(column) for row in rows]
            try:
                arrays[column] = to_array(values, kind)
            except (ValueError, pa.ArrowException):
                self._leave_out(column, places, values, kind)
                raise Restart from None
        try:
            schema = pa.schema(self._types)
        except UnicodeEncodeError:
            raise MmclError(f"{places[0]}: a key has half of a surrogate pair; write the character whole") from None
        return pa.RecordBatch.from_arrays(list(arrays.values()), schema=schema)

    def _blocks(self) -> Iterator[tuple[list[str], list[dict[str, Any]]]]:
        """Rows with what messages call them."""
        for file in self.files:
            places: list[str] = []
            rows: list[dict[str, Any]] = []
            size = 0
            for place, length, row in _objects(file):
                if not isinstance(row, dict):
                    shown = json.dumps(row, ensure_ascii=False)
                    shown = shown if len(shown) <= 40 else f"{shown[:40]} …"
                    raise MmclError(f"{path_text(file)}: {place} is {shown}; every row must be an object, {{…}}")
                places.append(f"{place} of {file.name}")
                rows.append(row)
                size += length
                if len(rows) == _BLOCK_ROWS or size > _BLOCK_BYTES:
                    yield places, rows
                    places, rows, size = [], [], 0
            if rows:
                yield places, rows


def _widened(known: pa.DataType, values: Sequence[Any]) -> pa.DataType:
    return unify(known, infer(values))


def _objects(file: Path) -> Iterator[tuple[str, int, Any]]:
    """Where each value stands, its length, and the value."""
    if format_of(file) == ".json" and not _by_lines(file):
        with open_bytes(file) as opened:
            content = _parsed(opened.read().removeprefix(_BOM), path_text(file), "it")
        items = content if isinstance(content, list) else _rows_of(content)
        yield from ((f"item {number}", 0, item) for number, item in enumerate(items, 1))
        return
    with open_bytes(file) as lines:
        for number, line in enumerate(lines, 1):
            if number == 1:
                line = line.removeprefix(_BOM)
            if line := line.strip():
                yield f"line {number}", len(line), _parsed(line, path_text(file), f"line {number}")


def _rows_of(content: Any) -> list[Any]:
    """An object as a row; or of columns the rows: columns that map the same keys to their cells, as pandas writes
    them, or several lists of as many cells."""
    columns = list(content.values()) if isinstance(content, dict) else []
    if columns and all(isinstance(cells, dict) and cells.keys() == columns[0].keys() for cells in columns):
        return [{name: cells[key] for name, cells in content.items()} for key in columns[0]]
    if len(columns) > 1 and all(isinstance(cells, list) and len(cells) == len(columns[0]) > 1 for cells in columns):
        return [dict(zip(content, cells, strict=True)) for cells in zip(*columns, strict=True)]
    return [content]


def _by_lines(file: Path) -> bool:
    """Whether the first of several lines is an object of its own."""
    with open_bytes(file) as lines:
        first, *more = [*islice((line for line in lines if line.removeprefix(_BOM).strip()), 2), b""]
    if not any(more):
        return False
    try:
        return isinstance(json.loads(first.removeprefix(_BOM).decode()), dict)
    except (ValueError, RecursionError):
        return False


def _parsed(content: bytes, file: str, place: str) -> Any:
    try:
        return json.loads(content.decode())
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 text ({error.reason}: byte 0x{content[error.start]:02x}); save it as UTF-8"
    except RecursionError:
        reason = "is nested too deeply"
    except ValueError as error:
        reason = f"is not JSON ({error})"
    raise MmclError(f"{file}: {place} {reason}")
