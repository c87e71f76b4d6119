"""Rows of a table that stays on disk: an Arrow memory map of which only what is asked for is read."""

from __future__ import annotations

import hashlib
import math
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeGuard
from urllib.parse import unquote_to_bytes

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.memory import drop_mapped_pages

if TYPE_CHECKING:
    import datasets

_BLOCK = 1000  # scattered rows are gathered this many at a time: each costs an Arrow slice while it is held


class NoSourceError(MmclError):
    """There are no rows of such a name."""


class ColumnError(MmclError):
    """Rows lack a column, or it does not hold what is asked of it.

    Attributes:
        column: its name.
    """

    def __init__(self, message: str, column: str) -> None:
        super().__init__(message)
        self.column = column


@contextmanager
def columns_named_by(settings: Mapping[str, str | Iterable[str] | None]) -> Iterator[None]:
    """Within, an error about a column says which setting names it.

    Args:
        settings: setting, such as ``--image`` or ``data.columns.image``, to the column or columns that it names.
    """
    try:
        yield
    except ColumnError as error:
        for setting, named in settings.items():
            if named is not None and error.column in ([named] if isinstance(named, str) else named):
                raise MmclError(f"{error}; name another with {setting}") from None
        raise


class Rows:
    """Rows with named columns, or a selection of them. Selecting copies row numbers, never rows.

    ``name`` is how messages call them. ``fingerprint`` is a hexadecimal string that changes when the content does, and
    with the selection; two equal selections of the same content have the same one. ``folder`` is what relative image
    paths start from. ``unreadable`` maps columns of the source that ``dataset`` lacks to the reason.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        *,
        name: str,
        fingerprint: str,
        folder: Path | None = None,
        unreadable: Mapping[str, str] = MappingProxyType({}),
        selection: np.ndarray | None = None,
        exploded: tuple[str, np.ndarray] | None = None,
    ) -> None:
        import datasets  # whoever has rows has imported it already; a search has none, and need not wait for it

        for column, feature in dataset.features.items():
            if isinstance(feature, datasets.Image) and feature.decode:
                dataset = dataset.cast_column(column, datasets.Image(decode=False))
            if isinstance(inner := getattr(feature, "feature", None), datasets.Image) and inner.decode:
                dataset = dataset.cast_column(column, datasets.List(datasets.Image(decode=False)))
        self.name = name
        self.folder = folder
        self.unreadable = unreadable
        self._dataset = dataset.with_format(None)
        self._views: dict[str, datasets.Dataset] = {}
        self._content = fingerprint
        self._selection = selection
        self._exploded = exploded  # a column of lists, and which item of its list each row has

    def __len__(self) -> int:
        return len(self._dataset) if self._selection is None else len(self._selection)

    def __repr__(self) -> str:
        return f"Rows({self.name!r}, {len(self)} rows, columns {', '.join(self.column_names)})"

    @property
    def column_names(self) -> list[str]:
        """The columns, in the order of the source, and then those that cannot be read."""
        return [*self._dataset.column_names, *self.unreadable]

    @cached_property
    def fingerprint(self) -> str:
        """Identifies content and selection."""
        if self._selection is None:
            return self._content
        digest = hashlib.blake2b(self._content.encode() + self._selection.tobytes(), digest_size=16)
        if self._exploded is not None:
            digest.update(self._exploded[0].encode() + self._exploded[1].tobytes())
        return digest.hexdigest()

    def require(self, columns: Iterable[str]) -> None:
        """Raise ``MmclError`` unless there is each of ``columns``; ``ColumnError`` for one that there is not."""
        for column in columns:
            if column in self.unreadable:
                raise MmclError(f"{self.name}: column '{column}' cannot be read: {self.unreadable[column]}")
            if column not in self.column_names:
                have = ", ".join(self.column_names)
                hint = nearest(column, self.column_names) if self.column_names else ""
                hint = f"; {hint}" if hint.startswith("did") else ""
                raise ColumnError(f"{self.name}: no column '{column}'; it has {have}{hint}", column)

    def select(self, indices: Sequence[int] | np.ndarray | range) -> Rows:
        """The rows at ``indices``, in that order. Raises ``IndexError`` for one outside [0, len)."""
        chosen = np.asarray(indices, dtype=np.int64)
        if len(chosen) and not (chosen.min() >= 0 and chosen.max() < len(self)):
            raise IndexError(f"{self.name}: rows {chosen.min()} to {chosen.max()} asked for, it has {len(self)}")
        exploded = None if self._exploded is None else (self._exploded[0], self._exploded[1][chosen])
        if self._selection is not None:
            chosen = self._selection[chosen]
        everything = len(chosen) == len(self._dataset) and np.array_equal(chosen, np.arange(len(chosen)))
        return self._with(None if everything and exploded is None else chosen, exploded)

    def exploded(self, column: str) -> tuple[Rows, np.ndarray]:
        """Each row once for every item of its list in ``column``, where it then has that item alone; and the row (M,)
        that each of the M comes from. A cell that is no list is one item, and so is an empty list, of nothing."""
        self.require([column])
        counts = np.ones(len(self), dtype=np.int64)
        if self.holds_lists(column):
            cells = self._dataset.select_columns([column]).with_format("arrow")[:][column]
            lengths = pc.fill_null(pc.list_value_length(cells), 0).to_numpy().astype(np.int64)
            counts = np.maximum(1, lengths if self._selection is None else lengths[self._selection])
        owner = np.repeat(np.arange(len(self)), counts)
        items = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self._with(owner if self._selection is None else self._selection[owner], (column, items)), owner

    def holds_lists(self, column: str) -> bool:
        """Whether the cells of a column are lists."""
        if self._exploded is not None and self._exploded[0] == column:
            return False
        kind = self._dataset.features.arrow_schema.field(column).type
        return pa.types.is_list(kind) or pa.types.is_large_list(kind)

    def _with(self, selection: np.ndarray | None, exploded: tuple[str, np.ndarray] | None) -> Rows:
        return Rows(
            self._dataset,
            name=self.name,
            fingerprint=self._content,
            folder=self.folder,
            unreadable=self.unreadable,
            selection=selection,
            exploded=exploded,
        )

    def of_split(self, split: str) -> Rows:
        """The rows whose column ``split`` says ``split``, which the new rows' name tells. Raises ``MmclError`` if there
        is none, or no such column."""
        if "split" not in self.column_names:
            raise MmclError(f"{self.name}: there is no column 'split' to choose '{split}' by; leave the split out")
        values = self.texts("split")
        chosen = [row for row, value in enumerate(values) if value == split]
        if not chosen:
            parts = ", ".join(sorted({str(value) for value in values if value}))
            raise MmclError(f"{self.name}: no split '{split}'; it has {parts or 'none'}")
        rows = self.select(chosen)
        rows.name = f"{self.name} ({split})"
        return rows

    def column(self, name: str) -> list[Any]:
        """A column as Python objects, one a row. The cells of a CSV or TSV file are text."""
        return self._read(name)

    def records(self, columns: Mapping[str, str], images: Collection[str] = ()) -> list[dict[str, Any]]:
        """Each row as names to cells: ``columns`` says of which columns, and ``images`` which are undecoded images."""
        every = range(len(self))
        cells = [self.images(of, every) if name in images else self.column(of) for name, of in columns.items()]
        return [dict(zip(columns, row, strict=True)) for row in zip(*cells, strict=True)]

    def ids(self, column: str | None = None) -> list[str]:
        """A name for each row: ``column``, or ``id`` (``_id`` in BEIR's files), as text, else its number in the source;
        of exploded rows, with the number of the item behind it, such as ``7[0]``.

        Raises ``MmclError`` for a row without one, or a column of what is neither text nor numbers.
        """
        column = column or next((name for name in ("id", "_id") if name in self.column_names), None)
        numbers = range(len(self)) if self._selection is None else self._selection.tolist()
        ids = list(numbers) if column is None else self.column(column)
        for number, value in zip(numbers, ids, strict=True):
            if value is None or value == "" or value != value:
                raise ColumnError(
                    f"{self.name}: row {number} has no id; fill the column '{column}' or rename it", str(column)
                )
        odd = next((value for value in ids if isinstance(value, bytes | list | dict)), None)
        if odd is not None:
            raise ColumnError(
                f"{self.name}: column '{column}' holds {type(odd).__name__}, where ids are text or numbers", str(column)
            )
        if self._exploded is None:
            return [str(value) for value in ids]
        return [f"{value}[{item}]" for value, item in zip(ids, self._exploded[1], strict=True)]

    def texts(self, column: str) -> list[str | list[str] | None]:
        """A column of texts, or of lists of texts. Numbers become text, class labels their names, passages with
        ``text`` and perhaps ``title`` (Tevatron's ``positive_passages``) title and text; None stays None.

        Raises ``MmclError`` for a column of anything else.
        """
        values = self.column(column)
        feature = self._dataset.features[column]
        if _is_class_label(feature):
            return [None if value is None or value < 0 else feature.int2str(value) for value in values]
        return [self._text(value, column) for value in values]

    def holds_numbers(self, column: str) -> bool:
        """Whether the cells of a column are typed as numbers, or as lists of them, which :meth:`texts` spells out."""
        if _is_class_label(self._dataset.features[column]):
            return False
        kind = self._dataset.features.arrow_schema.field(column).type
        while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            kind = kind.value_type
        return pa.types.is_integer(kind) or pa.types.is_floating(kind)

    def numbers(self, column: str) -> np.ndarray:
        """A column of numbers, float64; NaN where a cell is empty or no number."""
        return np.array([_number(value) for value in self.column(column)], dtype=np.float64)

    def labels(self, column: str) -> list[str | None]:
        """A column of labels as text: whole numbers are spelled out, class labels are their names; None where a cell is
        empty.

        Raises ``ColumnError`` for a column of anything else.
        """
        feature = self._dataset.features[column] if column in self._dataset.column_names else None
        values = self.texts(column) if _is_class_label(feature) else self.column(column)
        try:
            return [label_of(value) for value in values]
        except ValueError as error:
            raise ColumnError(f"{self.name}: column '{column}' holds {error}", column) from None

    def images(self, column: str, indices: Sequence[int] | np.ndarray) -> list[bytes | Path | None]:
        """The undecoded images of the rows at ``indices``: encoded bytes, or the path of a file; None where empty.

        Raises ``MmclError`` if the column holds something else.
        """
        return [self._image(value, column) for value in self._read(column, np.asarray(indices, dtype=np.int64))]

    def release(self) -> None:
        """Take what has been read of the files out of memory, of which they are the larger part in a long run."""
        drop_mapped_pages({file["filename"] for file in self._dataset.cache_files})

    def _read(self, column: str, places: np.ndarray | None = None) -> list[Any]:
        """The cells of ``column`` in the rows at ``places``, or in all."""
        self.require([column])
        indices = self._selection if places is None or self._selection is None else self._selection[places]
        try:
            cells = self._cells(column, places if indices is None else indices)
        except (UnicodeDecodeError, pa.ArrowException) as error:  # Parquet's text is whatever bytes its writer took
            reason = " ".join(str(error).split())
            raise MmclError(f"{self.name}: column '{column}' holds what is no UTF-8 text ({reason})") from error
        if self._exploded is None or self._exploded[0] != column:
            return cells
        items = self._exploded[1] if places is None else self._exploded[1][places]
        lists = [cell if isinstance(cell, list) else [cell] for cell in cells]
        return [cell[item] if cell else None for cell, item in zip(lists, items.tolist(), strict=True)]

    def _cells(self, column: str, indices: np.ndarray | None) -> list[Any]:
        if column not in self._views:
            self._views[column] = self._dataset.select_columns([column])
        view = self._views[column]
        if indices is None:
            return list(view[:][column])
        if len(indices) and np.array_equal(indices, np.arange(indices[0], indices[0] + len(indices))):
            return list(view[int(indices[0]) : int(indices[0]) + len(indices)][column])
        values: list[Any] = []
        for start in range(0, len(indices), _BLOCK):
            values += view[indices[start : start + _BLOCK].tolist()][column]
        return values

    def _text(self, value: Any, column: str) -> str | list[str] | None:
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, list):
            return [text for item in value for text in _as_list(self._text(item, column))]
        if (passage := passage_of(value)) is not None:
            return passage
        if isinstance(value, (bytes, dict)):
            raise MmclError(
                f"{self.name}: column '{column}' holds {type(value).__name__}, not text; name a text column"
            )
        return str(value)

    def _image(self, value: Any, column: str) -> bytes | Path | None:
        if isinstance(value, dict) and {"bytes", "path"} & value.keys():
            value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
        if value is None or value == "":
            return None
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            return _image_file(value, self.folder)
        raise MmclError(
            f"{self.name}: column '{column}' holds {type(value).__name__}, not images; "
            "an image is encoded bytes or the path of a file"
        )


def passage_of(value: Any) -> str | None:
    """Title and text of a passage, joined as BEIR joins them; None for what is none."""
    if not (isinstance(value, dict) and "text" in value):
        return None
    parts = [value.get("title"), value["text"]]
    if not all(part is None or isinstance(part, str) for part in parts):
        return None
    return " ".join(part.strip() for part in parts if part and part.strip())


def label_of(value: Any) -> str | None:
    """A label as text, so that 3, 3.0 and "3" are one; None for none, or a blank one.

    Raises ``ValueError``, which names the type, for what is neither text nor a whole number.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int):
        raise ValueError(f"{type(value).__name__}, where labels are text or whole numbers")
    return str(value).strip() or None


def _as_list(texts: str | list[str] | None) -> list[str]:
    return [texts] if isinstance(texts, str) else texts or []


def _is_class_label(feature: Any) -> TypeGuard[datasets.ClassLabel]:
    import datasets

    return isinstance(feature, datasets.ClassLabel)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _image_file(value: str, folder: Path | None) -> Path | bytes:
    """What an image's path or ``file://`` URL in a table means.

    Of a path that leads nowhere as it stands, ``\\`` may be the separator, as Windows writes it, and its accented
    letters may be composed or not, as macOS does. A file whose name is no UTF-8 is given as bytes: nothing that
    writes or prints could take its path.
    """
    written = value
    if value.lower().startswith("file:"):
        value = path_of_url(value)
    path = Path(value) if folder is None else folder / value
    if ("\\" in value or not value.isascii()) and not _is_file(path):
        slashed = value.replace("\\", "/")
        tried = (_spelled(path if folder is None else folder / path) for path in map(Path, (value, slashed)))
        path = next((found for found in tried if found is not None and _is_file(found)), path)
    try:
        str(path).encode()
    except UnicodeEncodeError:
        try:
            return path.read_bytes()
        except OSError:
            return Path(written)
    return path


def path_of_url(url: str) -> str:
    """The path that a ``file://`` URL names; what stands where a host would is the first folder of a relative path."""
    return os.fsdecode(unquote_to_bytes(re.sub("^file:(//(localhost(?=/))?)?", "", url, flags=re.IGNORECASE)))


def _spelled(path: Path) -> Path | None:
    """``path`` with each of its names composed or decomposed as the folder has it; None if it leads nowhere."""
    found = Path(path.anchor)
    for name in path.parts[1:] if path.anchor else path.parts:
        forms = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
        here = next((found / form for form in forms if os.path.lexists(found / form)), None)
        if here is None:
            return None
        found = here
    return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
