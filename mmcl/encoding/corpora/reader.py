"""A column of a corpus, read and decoded block by block."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

from mmcl.data.images import ImageError, decode, image_suffixes, usable_cpus
from mmcl.data.rows import Rows
from mmcl.data.sources.tar.rows import ShardRows
from mmcl.encoding.corpora.changes import COLUMNS, state
from mmcl.encoding.corpora.vectors import SPAN
from mmcl.runtime.files import existing_file

Modality = Literal["image", "text", "table"]

BLOCK_ROWS = {"text": 4_096, "image": 64, "table": 4_096}
"""Rows that are read, decoded and encoded at a time."""
Windows = Callable[[Sequence[str]], list[list[tuple[int, int]]]]
"""From texts to the windows of each: from a first to behind a last character."""
_SAMPLE_ROWS = 100
_LABEL_LENGTH = 200


@dataclass
class Block:
    """Rows, decoded: what there is to encode, and what was skipped."""

    rows: Sequence[int]
    ids: list[str] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    skipped: list[tuple[int, str, str]] = field(default_factory=list)  # row, id, reason
    columns: dict[str, list[int | None]] = field(default_factory=dict)  # of images, see changes.py; of windows
    first_windows: list[int] | None = None  # of texts whose windows are pooled: where those of each begin in inputs

    def add(self, id_: str, item: Any, label: Any) -> None:
        self.ids.append(id_)
        self.inputs.append(item)
        self.labels.append(_shown(label))


@dataclass
class SourceReader:
    """Reads and decodes a column, block by block.

    Attributes:
        windows: cuts long texts; they are left as they are if absent.
        pooled: whether the windows of a text become one vector, or each has a row.
    """

    rows: Rows | ShardRows
    column: str
    modality: Modality
    label_column: str | None = None
    id_column: str | None = None
    prepare: Callable[[Any], Any] = decode
    fields: Sequence[str] = ()  # columns of a table tower, which ``column`` names
    image_fields: Collection[str] = ()  # those of them that hold images
    windows: Windows | None = None
    pooled: bool = True

    def blocks(self, pieces: Iterable[Sequence[int]]) -> Iterator[Block]:
        """A block of the rows of each piece, read and decoded while the one before it is being encoded."""
        kind = {"image": self._images, "text": self._texts, "table": self._records}[self.modality]

        def read(piece: Sequence[int], decoders: ThreadPoolExecutor) -> Block:
            block = kind(piece, decoders)
            if isinstance(self.rows, Rows):
                self.rows.release()
            return block

        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(usable_cpus()) as decoders:
            due = None
            for piece in pieces:
                coming = ahead.submit(read, piece, decoders)
                if due:
                    yield due.result()
                due = coming
            if due:
                yield due.result()

    def images(self, rows: Sequence[int]) -> Sequence[bytes | Path | ImageError | None]:
        """The undecoded images of some rows."""
        return self.rows.images(self.column, rows)

    def _texts(self, rows: Sequence[int], decoders: ThreadPoolExecutor) -> Block:
        part = self.rows.select(rows)
        labels: list[Any] = part.column(self.label_column) if self.label_column else [None] * len(part)
        block = Block(rows)
        for row, id_, value, label in zip(rows, part.ids(self.id_column), part.texts(self.column), labels, strict=True):
            texts: list[str | None] = [*value] if isinstance(value, list) else [value]
            for text in texts or [None]:
                if text is None or not text.strip():
                    block.skipped.append((row, id_, "empty text"))
                else:
                    block.add(id_, text, label if self.label_column else text)
        return block if self.windows is None else self._in_windows(block, self.windows(block.inputs))

    def _in_windows(self, block: Block, windows: list[list[tuple[int, int]]]) -> Block:
        owners = [owner for owner, spans in enumerate(windows) for _ in spans]
        spans = [span for some in windows for span in some]
        inputs = [block.inputs[owner][start:end] for owner, (start, end) in zip(owners, spans, strict=True)]
        if self.pooled:
            firsts = list(accumulate((len(some) for some in windows[:-1]), initial=0)) if windows else []
            return replace(block, inputs=inputs, first_windows=firsts)
        labels = [block.labels[owner] for owner in owners] if self.label_column else [_shown(text) for text in inputs]
        columns: dict[str, list[int | None]] = {name: [span[side] for span in spans] for side, name in enumerate(SPAN)}
        return replace(block, ids=[block.ids[owner] for owner in owners], inputs=inputs, labels=labels, columns=columns)

    def _records(self, rows: Sequence[int], decoders: ThreadPoolExecutor) -> Block:
        assert isinstance(self.rows, Rows), "tables alone have several columns to read"
        part = self.rows.select(rows)
        labels: list[Any] = part.column(self.label_column) if self.label_column else [None] * len(part)
        block = Block(rows)
        records = part.records({name: name for name in self.fields}, self.image_fields)
        for id_, record, label in zip(part.ids(self.id_column), records, labels, strict=True):
            block.add(id_, record, label)
        return block

    def _images(self, rows: Sequence[int], decoders: ThreadPoolExecutor) -> Block:
        part = self.rows.select(rows)
        images = part.images(self.column, range(len(part)))
        paths = [image if isinstance(image, Path) else None for image in images]
        labels: Sequence[Any] = part.column(self.label_column) if self.label_column else paths
        block = Block(rows, columns={name: [] for name in COLUMNS})
        states = list(map(state, images))  # before they are read, so that a change meanwhile is noticed
        prepared = decoders.map(self._prepared, images)
        for row, id_, found, label, known in zip(rows, part.ids(self.id_column), prepared, labels, states, strict=True):
            if isinstance(found, ImageError):
                block.skipped.append((row, id_, str(found)))
            else:
                block.add(id_, found, label)
                for name, value in zip(COLUMNS, (row, *known), strict=True):
                    block.columns[name].append(value)
        return block

    def _prepared(self, image: bytes | Path | ImageError | None) -> Any:
        """The image as the encoder takes it, or the error that says why there is none."""
        try:
            return image if isinstance(image, ImageError) else self.prepare(image)
        except ImageError as error:
            return ImageError(f"{error}: {image}") if isinstance(image, Path) else error


def pieces(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Some rows, so many at a time."""
    return (rows[at : at + size] for at in range(0, len(rows), size))


def _shown(label: Any) -> str | None:
    if isinstance(label, Path):
        return str(label)
    return None if label is None else shorten(str(label), _LABEL_LENGTH, placeholder=" …")


def modality_of(rows: Rows | ShardRows, column: str) -> Modality:
    """What the first rows hold: images, names of files that end as images do or of which most exist, or text."""
    if isinstance(rows, ShardRows):
        return rows.modality(column)
    head = rows.select(range(min(_SAMPLE_ROWS, len(rows))))
    values = {row: value for row, value in enumerate(head.column(column)) if value is not None and value != ""}
    if any(isinstance(value, bytes | dict) for value in values.values()):
        return "image"
    if not values or not all(isinstance(value, str) for value in values.values()):
        return "text"
    paths = [path for path in head.images(column, list(values)) if isinstance(path, Path)]
    named = all(path.suffix.lower() in image_suffixes() for path in paths)
    return "image" if named or sum(existing_file(path) is not None for path in paths) > len(paths) / 2 else "text"
