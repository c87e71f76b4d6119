"""The roles of the rows, as inputs of a method: pixels, tokens, cached features, labels or numbers."""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmcl.data.augment.texts import TextAugmentation
from mmcl.data.batches.inputs import image_inputs, text_inputs
from mmcl.data.batches.text_reader import TextReader
from mmcl.data.batches.towers import Embedder
from mmcl.data.batches.views import VALUES
from mmcl.data.cache.pixels import Pixels
from mmcl.data.cache.resident import ResidentPixels, fits
from mmcl.data.cache.tokens import Tokens, texts_of
from mmcl.data.identity import NOTHING, mix, stable_hash
from mmcl.data.processors.table import Cells
from mmcl.data.row_items import RowItems, all_items, choose_caption, choose_item
from mmcl.data.rows import Rows
from mmcl.runtime.files import atomic_file
from mmcl.runtime.progress import progress

FEATURES_A_BATCH = 256


class Column(ABC):
    """One role of the rows of one or several sources, as inputs of its embedder.

    Rows are numbered through the sources. A row has one or more *items* (one image, several captions), numbered
    through the column.

    Attributes:
        identified: whether its items are things, of which two can be the same.
        hashes: (items,) int64 identities: of texts, by what the tower reads of them, whatever the prompt.
        contents: (items,) int64, equal where the inputs are: of texts, the prompt included.
        problems: row to the reason why it cannot be used.
    """

    identified: ClassVar[bool] = True
    hashes: np.ndarray
    contents: np.ndarray
    problems: dict[int, str]
    several: bool = False
    """Whether each random draw of a row takes another of its items, as long as there are others."""

    def choose(self, rows: np.ndarray, seeds: Tensor, draw: int = 0) -> np.ndarray:
        """One item of each row, for a random draw of it."""
        return rows

    def names(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(N,) int64 identities of the chosen items of N rows; ``NOTHING`` of a row without any."""
        return np.asarray(self.hashes[items])

    def items(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All items of the rows, and for each the position in ``rows`` that it belongs to."""
        return rows, np.arange(len(rows))

    @abstractmethod
    def inputs(self, items: np.ndarray, seeds: Tensor | None = None) -> dict[str, Tensor]:
        """The embedder's inputs for these items; with ``seeds`` (N,), changed at random if the column does so."""

    def use_threads(self, count: int) -> None:
        """Prepare inputs by so many threads, where there is a choice."""
        return


class PixelColumn(Column):
    """Images: one a row, or any number, of which every random draw takes another, in an order by the row's seed.

    Args:
        parts: the images of each source, as the tower sees them or as originals.
        squares: of originals: opens the same images as the tower sees them, for what is not changed at random.
        of_rows: at least one of them for each row; absent where the rows are the images.
        collate: makes the tower's inputs of images (H, W, 3), where it keeps their shapes; absent for squares.

    Attributes:
        dropped: images that cannot be used, of rows that have others.
    """

    def __init__(
        self,
        parts: Sequence[Pixels[Any]],
        squares: Callable[[], Sequence[Pixels[np.ndarray]]] | None = None,
        of_rows: RowItems | None = None,
        collate: Callable[[list[np.ndarray]], dict[str, Tensor]] | None = None,
    ) -> None:
        self._parts = parts
        self._collate = collate
        self._open_squares = squares
        self._starts = np.cumsum([0, *map(len, parts)])
        self.hashes = self.contents = _joined([part.hashes for part in parts])
        failed = {
            int(start) + row: why
            for start, part in zip(self._starts, parts, strict=False)
            for row, why in part.errors.items()
        }
        self._resident: ResidentPixels | None = None
        self._of_rows, self.problems, self.dropped = of_rows, failed, 0
        if of_rows is not None:
            usable = ~np.isin(of_rows.items, list(failed))
            first = np.concatenate([[0], np.cumsum(usable)])[of_rows.first]
            lacking = np.flatnonzero(np.diff(first) == 0)
            self._of_rows = RowItems(of_rows.items[usable], first)
            self.problems = {int(row): failed[int(of_rows.items[of_rows.first[row]])] for row in lacking}
            self.dropped = int((~usable).sum() - np.diff(of_rows.first)[lacking].sum())
            self.several = bool(np.diff(first).max(initial=1) > 1)

    def choose(self, rows: np.ndarray, seeds: Tensor, draw: int = 0) -> np.ndarray:
        if self._of_rows is None:
            return rows
        items, first = self._of_rows
        return items[first[rows] + choose_item(first[rows + 1] - first[rows], seeds, draw)]

    def items(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._of_rows is None:
            return super().items(rows)
        places, owner = all_items(self._of_rows.first, rows)
        return self._of_rows.items[places], owner

    def move_to(self, device: torch.device) -> int:
        """Keep the images that are learned from on ``device``: all inputs of them are there from now on. Returns how
        many bytes they take."""
        self._resident = ResidentPixels(self._parts, device)
        return self._resident.bytes

    def fits(self, device: torch.device) -> bool:
        """Whether ``device`` has the memory for :meth:`move_to`."""
        return self._collate is None and fits(self._parts, device)

    def inputs(self, items: np.ndarray, seeds: Tensor | None = None) -> dict[str, Tensor]:
        if self._open_squares is not None and seeds is None:
            return self._squares.inputs(items)
        if self._resident is not None:
            return self._resident.inputs(items)
        if self._open_squares is not None:
            return image_inputs(self._images(items))
        if self._collate is not None:
            return self._collate(self._images(items))
        if len(self._parts) == 1:
            return {"pixels": torch.from_numpy(self._parts[0].take(items))}
        side = self._parts[0].size
        pixels = np.empty((len(items), side, side, 3), dtype=np.uint8)
        for source, where, local in split(items, self._starts):
            pixels[where] = self._parts[source].take(local)
        return {"pixels": torch.from_numpy(pixels)}

    def use_threads(self, count: int) -> None:
        for part in self._parts:
            part.threads = count
        if "_squares" in vars(self):
            self._squares.use_threads(count)

    @functools.cached_property
    def _squares(self) -> PixelColumn:
        """Made when first asked for: few runs do."""
        assert self._open_squares is not None, "the caller looks"
        return PixelColumn(self._open_squares(), collate=self._collate)

    def _images(self, items: np.ndarray) -> list[np.ndarray]:
        images: list[np.ndarray] = [np.empty(0)] * len(items)
        for source, where, local in split(items, self._starts):
            for place, image in zip(where, self._parts[source].take(local), strict=True):
                images[place] = image
        return images


class TextPart(NamedTuple):
    """The texts of a role in one source.

    Attributes:
        tokens: of every text.
        reader: what made them.
        rows: where the texts stand.
        column: the name of their column there; None where no row has any.
    """

    tokens: Tokens
    reader: TextReader
    rows: Rows
    column: str | None

    def texts(self, items: np.ndarray) -> list[str]:
        """The texts themselves, read again."""
        assert self.column is not None, "items stand somewhere"
        rows, numbers = self.tokens.row_of(items)
        cells = self.rows.select(rows).texts(self.column)
        return [texts_of(cell)[number] for cell, number in zip(cells, numbers, strict=True)]


class TokenColumn(Column):
    """Texts: any number a row, of which a row's seed chooses one, and changes it where an augmentation is given.

    With ``optional``, a row without texts is no problem: another row's stands in for its own, named ``NOTHING``.
    """

    def __init__(
        self, parts: Sequence[TextPart], augmentation: TextAugmentation | None = None, optional: bool = False
    ) -> None:
        self._parts = parts
        self._augmentation = augmentation
        tokens = [part.tokens for part in parts]
        self._starts = np.cumsum([0, *(len(part.hashes) for part in tokens)])
        # The item that each row begins with; a source's last entry is the next one's first.
        firsts = [start + part.first[: len(part)] for start, part in zip(self._starts, tokens, strict=False)]
        self._first = np.concatenate([*firsts, self._starts[-1:]])
        self.hashes = _joined([part.hashes for part in tokens])
        self.contents = _joined([part.contents for part in tokens])
        self.lacking = np.flatnonzero(np.diff(self._first) == 0)
        self.problems = {} if optional else dict.fromkeys(self.lacking.tolist(), "no text")

    @property
    def longest(self) -> int:
        """Tokens that a text can have."""
        if self._augmentation is not None:
            return self._parts[0].reader.processor.max_tokens
        return max(part.tokens.longest for part in self._parts)

    def choose(self, rows: np.ndarray, seeds: Tensor, draw: int = 0) -> np.ndarray:
        first = self._first[rows]
        chosen = first + choose_caption(self._first[rows + 1] - first, seeds)
        return np.minimum(chosen, len(self.hashes) - 1)  # where the last rows have none

    def names(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        return np.where(self._first[rows + 1] == self._first[rows], NOTHING, self.hashes[items])

    def items(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return all_items(self._first, rows)

    def inputs(self, items: np.ndarray, seeds: Tensor | None = None) -> dict[str, Tensor]:
        tokens: list[np.ndarray] = [np.empty(0, np.int32)] * len(items)
        skipped = np.zeros(len(items), dtype=np.int64)
        for source, where, local in split(items, self._starts):
            part = self._parts[source]
            ids = part.tokens.take(local)
            if self._augmentation is not None and seeds is not None:
                reader, texts = part.reader, functools.partial(part.texts, local)
                ids = self._augmentation(ids, seeds[where], reader.framing, texts, reader.tokenize)
            for place, text in zip(where, ids, strict=True):
                tokens[place] = text
            skipped[where] = part.reader.skipped
        return text_inputs(self._parts[0].reader.processor, tokens, skipped)


class ValueColumn(Column):
    """Labels or numbers: one a row, which passes through no tower. Rows that agree in one are not the same thing, so
    that it has no identity.

    Numbers are float32. Labels are int64 hashes of their text: equal for equal labels, in every process and run,
    without a list of all that there are.

    Args:
        modality: ``label`` or ``number``.
        parts: the values of each source: numbers, NaN for none; or the texts of labels, None for none.
    """

    identified = False

    def __init__(self, modality: str, parts: Sequence[Any]) -> None:
        self._name = VALUES[modality]
        if modality == "label":
            self.values = np.concatenate([_hashed(part) for part in parts])
            missing = self.values == NOTHING
        else:
            with np.errstate(over="ignore"):  # what float32 cannot hold is no number
                self.values = np.concatenate([np.asarray(part, dtype=np.float32) for part in parts])
            missing = ~np.isfinite(self.values)
        self.hashes = self.contents = np.zeros(0, dtype=np.int64)
        self.problems = dict.fromkeys(np.flatnonzero(missing).tolist(), f"no {modality}")

    def inputs(self, items: np.ndarray | slice, seeds: Tensor | None = None) -> dict[str, Tensor]:
        return {self._name: torch.from_numpy(self.values[items])}


class CellColumn(Column):
    """A field of categories or numbers of a table tower: one cell a row.

    Args:
        field: that reads it.
        cells: what it has read of every row.
        hashes: (rows,) int64, equal where the cells are.
    """

    def __init__(self, field: Cells, cells: Sequence[np.ndarray], hashes: np.ndarray) -> None:
        self._field, self._cells = field, cells
        self.hashes = self.contents = hashes
        self.problems = {}

    def inputs(self, items: np.ndarray, seeds: Tensor | None = None) -> dict[str, Tensor]:
        return self._field.collate([self._cells[item] for item in items])


class TableColumn(Column):
    """A group of columns, for a table tower: one item a row, which is the same thing as another's where all of its
    fields are.

    Args:
        fields: name to each of them; where a row has several texts, its seed chooses one.
        rows: their number.
    """

    def __init__(self, fields: Mapping[str, Column], rows: int) -> None:
        self._fields = fields
        self.problems = {row: f"{name}: {why}" for name, of in fields.items() for row, why in of.problems.items()}
        every, seeds = np.arange(rows), torch.zeros(rows, dtype=torch.int64)
        hashes = torch.zeros(rows, dtype=torch.int64)
        for of in fields.values():
            hashes = mix(hashes, torch.from_numpy(of.names(every, of.choose(every, seeds))))
        self.hashes = self.contents = hashes.numpy()

    def inputs(self, items: np.ndarray, seeds: Tensor | None = None) -> dict[str, Tensor]:
        seeds = torch.zeros(len(items), dtype=torch.int64) if seeds is None else seeds
        return {
            f"{column}/{name}": tensor
            for column, of in self._fields.items()
            for name, tensor in of.inputs(of.choose(items, seeds)).items()
        }

    def use_threads(self, count: int) -> None:
        for of in self._fields.values():
            of.use_threads(count)


class FeatureColumn(Column):
    """The features of a frozen tower, computed once for each distinct item and kept in a memory map.

    Args:
        column: the items.
        embedder: with the tower that they go through.
        path: start of the name of the file to keep the features in.
        device: where the tower runs.
    """

    def __init__(self, column: Column, embedder: Embedder, path: Path, device: torch.device) -> None:
        self.column = column
        # The rows of the file are in the order of the contents: other contents, other file.
        content = hashlib.blake2b(np.ascontiguousarray(column.contents).tobytes(), digest_size=16).hexdigest()
        path = path.with_name(f"{path.name}-{content}.npy")
        self.hashes, self.contents, self.problems = column.hashes, column.contents, column.problems
        self.several = column.several
        _, example, self._feature_of = np.unique(column.contents, return_index=True, return_inverse=True)
        if not path.is_file():
            self._compute(example, embedder, path, device)
        self.features = np.load(path, mmap_mode="r", allow_pickle=False)

    def choose(self, rows: np.ndarray, seeds: Tensor, draw: int = 0) -> np.ndarray:
        return self.column.choose(rows, seeds, draw)

    def names(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        return self.column.names(rows, items)

    def items(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.column.items(rows)

    def inputs(self, items: np.ndarray, seeds: Tensor | None = None) -> dict[str, Tensor]:
        return {"features": torch.from_numpy(self.features[self._feature_of[items]])}

    @torch.inference_mode()
    def _compute(self, items: np.ndarray, embedder: Embedder, path: Path, device: torch.device) -> None:
        tower = embedder.tower
        with atomic_file(path) as beside, progress(f"{embedder.modality} features", len(items)) as advance:
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(items), tower.width)}
            # Written rather than mapped: a disk that fills up under a map kills the process.
            with beside.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, len(items), FEATURES_A_BATCH):
                    chunk = items[start : start + FEATURES_A_BATCH]
                    inputs = {name: tensor.to(device) for name, tensor in self.column.inputs(chunk).items()}
                    file.write(tower(**inputs).float().cpu().numpy().tobytes())
                    advance(len(chunk))


def split(numbers: np.ndarray, starts: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Numbers that run through several sources, by source: its place, where its numbers stand, and they within it.

    With ``starts`` = (0, 10, 30), the numbers (12, 3, 11) are those at places (1,) of source 0, there (3,), and those
    at (0, 2) of source 1, there (2, 1).
    """
    sources = np.searchsorted(starts, numbers, side="right") - 1
    for source in np.unique(sources):
        where = np.flatnonzero(sources == source)
        yield int(source), where, numbers[where] - starts[source]


def _hashed(labels: Sequence[str | None]) -> np.ndarray:
    """(N,) int64 hashes of labels; ``NOTHING`` in place of none."""
    codes = {label: NOTHING if label is None else stable_hash(label) for label in set(labels)}
    return np.array([codes[label] for label in labels], dtype=np.int64)


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """One after the other; a single one stays the memory map that it may be."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
