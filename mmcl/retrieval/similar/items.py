"""The distinct things in a column of rows, embedded by one or several models, with vectors on disk."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmcl.data.identity import NOTHING, stable_hash
from mmcl.data.images import ImageError, usable_cpus
from mmcl.data.near_copies import normalised
from mmcl.data.processors.image import ImageProcessor
from mmcl.data.rows import Rows
from mmcl.data.sources import open_source
from mmcl.data.sources.tar.rows import ShardRows
from mmcl.encoding.corpora.reader import modality_of
from mmcl.encoding.encoder import Encoder
from mmcl.runtime.errors import MmclError
from mmcl.runtime.progress import progress

log = logging.getLogger("mmcl")
_BLOCK = {"text": 4096, "image": 64}  # rows that are read and embedded at a time


@dataclass(frozen=True)
class Side:
    """A column of rows, and how its things are embedded.

    Attributes:
        column: its name.
        tower: the model's tower, where it has several of a kind.
        prompt: name of the model's prompt to put before texts; the default one if None, "" for none.
    """

    column: str
    tower: str | None = None
    prompt: str | None = None


class Items:
    """The distinct things of a column: texts that are equal, and images of equal bytes, are one.

    Args:
        rows: what holds them; a cell that is a list has to be exploded.
        column: of texts or images.
        by_words: texts with the same words are one, too, whatever their case and punctuation.

    Attributes:
        modality: ``text`` or ``image``.
        of_rows: (N,) int64 place of each row's thing among the M distinct ones; -1 of a row without.
        first: (M,) int64 row in which each comes first.
        identities: (M,) int64, equal for texts with the same words, whatever their case and punctuation.
        of_bytes: whether they are images that the rows hold, rather than name.
    """

    def __init__(self, rows: Rows, column: str, *, by_words: bool = False) -> None:
        rows.require([column])
        self.rows, self.column = rows, column
        self.modality: str = modality_of(rows, column)
        hashes, words = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        with progress("read", len(rows), "rows") as advance:
            for part, things in self._blocks(np.arange(len(rows))):
                known = [_identities(thing) for thing in things]
                hashes[part], words[part] = zip(*known, strict=True)
                advance(len(things))
        there = np.flatnonzero(hashes != NOTHING)
        _, first, number = np.unique((words if by_words else hashes)[there], return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")  # in the order of the rows
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        self.of_rows = np.full(len(rows), -1)
        self.of_rows[there] = place[number]
        self.first = there[first[order]]
        self.identities = words[self.first]
        head = self.read(np.arange(min(1, len(self)))) if self.modality == "image" else []
        self.of_bytes = any(isinstance(thing, bytes) for thing in head)

    def __len__(self) -> int:
        return len(self.first)

    def read(self, items: np.ndarray) -> list[Any]:
        """The things: texts, or images as encoded bytes or paths."""
        return self._read(self.first[items])

    def cells(self, items: np.ndarray) -> list[str] | list[bytes]:
        """The things as a table holds them: texts, absolute paths of images, or images as bytes."""
        things = self.read(items)
        if self.of_bytes:
            return [thing.read_bytes() if isinstance(thing, Path) else thing for thing in things]
        for thing in things:
            if isinstance(thing, bytes):
                raise MmclError(
                    f"{self.rows.name}: column '{self.column}' has images both in the rows and beside them; write them "
                    "in one way"
                )
        return [str(thing.resolve()) if isinstance(thing, Path) else thing for thing in things]

    def embed(self, encoder: Encoder, side: Side, path: Path) -> np.ndarray:
        """(M, D) float32 unit vectors in a memory map; of zeros where an image cannot be read, which is counted and
        said once.

        Args:
            encoder: the model.
            side: its tower and prompt.
            path: the file to write.

        Raises:
            MmclError: the model does not embed such things.
        """
        modality = side.tower or self.modality
        if self.modality not in encoder.modalities:
            raise MmclError(
                f"{self.rows.name}: column '{self.column}' holds {self.modality}s, which model '{encoder.name}' does "
                "not embed; name another column or model"
            )
        prompt = side.prompt if self.modality == "text" else None
        failed: dict[int, str] = {}
        # Written rather than mapped: on a full disk, a write is an error, and a page that cannot be stored the end.
        with path.open("wb") as file, progress("embed", len(self), f"{self.modality}s") as advance:
            for part, things in self._blocks(self.first):
                vectors = np.zeros((len(things), encoder.dim), np.float32)
                kept = list(range(len(things)))
                if self.modality == "image":
                    things, errors = _prepared(encoder.towers.image(modality).processor, things)
                    failed |= {int(self.first[part][place]): why for place, why in errors.items()}
                    kept = [place for place in kept if place not in errors]
                if len(things):
                    vectors[kept] = encoder.encode(things, modality, prompt=prompt, show_progress=False)
                file.write(vectors.tobytes())
                advance(len(vectors))
        if failed:
            row = min(failed)
            log.warning(
                "%s: %d images in column '%s' cannot be read and are left out (first: row %d: %s)",
                self.rows.name, len(failed), self.column, row, failed[row],
            )  # fmt: skip
        if not len(self):
            return np.empty((0, encoder.dim), np.float32)
        return np.memmap(path, np.float32, "r", shape=(len(self), encoder.dim))

    def _blocks(self, numbers: np.ndarray) -> Iterator[tuple[slice, list[Any]]]:
        """The things in the rows of these numbers, with the part of ``numbers`` that each block is."""
        size = _BLOCK[self.modality]
        for start in range(0, len(numbers), size):
            part = slice(start, min(start + size, len(numbers)))
            yield part, self._read(numbers[part])

    def _read(self, numbers: np.ndarray) -> list[Any]:
        rows = self.rows.select(numbers)
        if self.modality == "image":
            return list(rows.images(self.column, range(len(rows))))
        return [text if isinstance(text, str) and text.strip() else None for text in rows.texts(self.column)]


def readable(vectors: np.ndarray) -> np.ndarray:
    """(M,) bool: which of the things that :meth:`Items.embed` embedded have a vector."""
    there = np.empty(len(vectors), dtype=bool)
    for start in range(0, len(there), 1 << 16):
        there[start : start + (1 << 16)] = vectors[start : start + (1 << 16)].any(axis=1)
    return there


def as_cells(items: Items, of: np.ndarray) -> pa.Array:
    """The things as cells of a table; empty where ``of`` is -1."""
    distinct, back = np.unique(of[of >= 0], return_inverse=True)
    found = np.empty(len(distinct), dtype=object)
    found[:] = items.cells(distinct)
    cells = np.full(len(of), None, dtype=object)
    cells[of >= 0] = found[back]
    return pa.array(cells, pa.binary() if items.of_bytes else pa.string())


def with_random_access(source: Rows | ShardRows, columns: Sequence[str], folder: Path) -> Rows:
    """Rows of which any can be read: of tar shards, a copy of these columns in ``folder``."""
    source.require(columns)
    if isinstance(source, Rows):
        return source
    images = [column for column in columns if source.modality(column) == "image"]
    schema = pa.schema(
        {"id": pa.string()}
        | {column: pa.binary() if column in images else pa.list_(pa.string()) for column in columns if column != "id"}
    )
    path = folder / "rows.parquet"
    with pq.ParquetWriter(path, schema) as file, progress("copy", len(source), "rows") as advance:
        for start in range(0, len(source), 256):
            block = source.select(range(start, min(start + 256, len(source))))
            cells: dict[str, list[Any]] = {"id": block.ids()}
            for column in schema.names[1:]:
                if column in images:
                    read = block.images(column, range(len(block)))
                    cells[column] = [None if isinstance(image, ImageError) else image for image in read]
                else:
                    cells[column] = [[text] if isinstance(text, str) else text for text in block.texts(column)]
            file.write_table(pa.table(cells, schema=schema))
            advance(len(block))
    rows = open_source(path)
    rows.name = source.name
    return rows


def exploded(rows: Rows, columns: Sequence[str]) -> Rows:
    """The rows with a list in one of ``columns``, an image's captions for example, once for each of its items.

    Raises:
        MmclError: several columns hold lists.
    """
    rows.require(columns)
    lists = [column for column in columns if rows.holds_lists(column)]
    if len(lists) > 1:
        raise MmclError(f"{rows.name}: columns {' and '.join(lists)} hold lists; write a row for each pair")
    return rows.exploded(lists[0])[0] if lists else rows


def _content(thing: Any) -> str | bytes:
    if not isinstance(thing, Path):
        return thing
    try:
        return thing.read_bytes()
    except OSError:
        return str(thing)  # which embedding will report


def _identities(thing: Any) -> tuple[int, int]:
    """Of the very thing, and of its words."""
    if thing is None:
        return NOTHING, NOTHING
    content = stable_hash(_content(thing))
    return content, stable_hash(normalised(thing)) if isinstance(thing, str) else content


def _prepared(processor: ImageProcessor, images: list[Any]) -> tuple[list[Any], dict[int, str]]:
    """Images that can be read, and why the others cannot."""

    def prepare(image: Any) -> Any:
        try:
            return processor.prepare(image)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(usable_cpus()) as threads:
        found = list(threads.map(prepare, images))
    errors = {place: str(image) for place, image in enumerate(found) if isinstance(image, ImageError)}
    return [image for image in found if not isinstance(image, ImageError)], errors
