"""Rows of tables, each role of them as what an embedder takes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmcl.config.data import SourceConfig, TrainSourceConfig
from mmcl.config.schema import Config
from mmcl.data.augment.texts import TextAugmentation
from mmcl.data.batches.columns import (
    CellColumn,
    Column,
    FeatureColumn,
    PixelColumn,
    TableColumn,
    TextPart,
    TokenColumn,
    ValueColumn,
    split,
)
from mmcl.data.batches.reading import Reading
from mmcl.data.batches.text_reader import TextReader
from mmcl.data.batches.towers import Encoder
from mmcl.data.batches.views import VALUES
from mmcl.data.cache.pixels import Pixels, open_originals, open_pixels, original_hashes
from mmcl.data.cache.tokens import open_tokens
from mmcl.data.identity import stable_hash
from mmcl.data.processors.image import ImageProcessor
from mmcl.data.processors.table import Categories, Cells, TableProcessor
from mmcl.data.processors.text import TextProcessor
from mmcl.data.row_items import RowItems, all_items
from mmcl.data.rows import ColumnError, Rows, columns_named_by
from mmcl.data.sources import open_described
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")


class Table:
    """The rows of one or several sources, numbered through them. Its arguments are explained at
    :func:`~mmcl.data.batches.feed.open_feed`; ``where`` is the key of the one source in the config, if the rows are not
    those to learn from.

    Attributes:
        columns: role to what its embedder gets.
        positions: (N,) the usable rows.

    Raises:
        MmclError: a source cannot be read, or lacks a column; a role's prompt is none of the model's.
    """

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        reading: Reading,
        config: Config,
        scratch: Path | None,
        *,
        augmented: bool = False,
        device: torch.device,
        show_progress: bool | None = None,
        where: str | None = None,
    ) -> None:
        self.config = config
        self.settings = sources
        self._reading, self._augmented = reading, augmented
        self._optional = reading.optional
        self._stored: dict[str, int | None] = {}  # role to the side of originals of images, where it has them
        keys = [where] if where else ["data.train", *(f"data.mix.{number}" for number in range(len(sources) - 1))]
        self.sources = [open_described(of, config.data.image, key) for of, key in zip(sources, keys, strict=True)]
        self._unexploded, self._owners = self.sources, [np.arange(len(rows)) for rows in self.sources]
        if augmented and config.data.explode is not None:
            self._explode(config.data.explode)
        self.starts = np.cumsum([0, *map(len, self.sources)])
        self._scratch, self._device, self._show_progress = scratch, device, show_progress
        self._augmentation: TextAugmentation | None = None
        if augmented and config.augments("text"):
            self._augmentation = TextAugmentation(config.text_augmentation)
        for number, rows in enumerate(self.sources):
            roles = [name for role in reading.columns for name in self._read_of(role)]
            names = {f"{where or 'data'}.columns.{role}": self._names(role)[number] for role in roles}
            with columns_named_by(names):
                rows.require(name for name in names.values() if name is not None)
        self.columns: dict[str, Column] = {}
        for role, modality in reading.columns.items():
            if modality in VALUES:
                self.columns[role] = self._values(role, modality)
                continue
            embedder = reading.embedder(role)
            if isinstance(embedder.processor, TableProcessor):
                self.columns[role] = self._group(role, embedder.processor)
                continue
            changed = augmented and (config.augments(modality) or reading.changes(role))
            stored = reading.stored_side(role, config.data.image.stored) if augmented and modality == "image" else None
            self._stored[role] = stored
            column = self._open(role, embedder.processor, changed, stored=stored)
            if embedder.frozen and not changed and scratch is not None:
                column = FeatureColumn(column, embedder, scratch / reading.tower(role), device)
            self.columns[role] = column
        problems = {row for column in self.columns.values() for row in column.problems}
        self.positions = np.setdiff1d(np.arange(self.total), np.fromiter(problems, dtype=np.int64, count=len(problems)))

    @property
    def name(self) -> str:
        """What messages call the rows."""
        return " + ".join(rows.name for rows in self.sources)

    @property
    def total(self) -> int:
        """Rows, usable or not."""
        return int(self.starts[-1])

    @property
    def fingerprint(self) -> str:
        """Changes when the rows do."""
        return "-".join([*(rows.fingerprint for rows in self.sources), str(len(self.positions))])

    def require_rows(self) -> None:
        """Raise ``MmclError`` unless some row can be used."""
        if not len(self.positions):
            problem = self.problems()[0]
            raise MmclError(
                f"{self.name}: none of the {self.total} rows can be used; row {problem['id']}, {problem['role']}: "
                f"{problem['reason']}"
            )

    def problems(self) -> list[dict[str, str]]:
        """The rows left out: id, role and reason, in order."""
        found = sorted((row, role, why) for role, c in self.columns.items() for row, why in c.problems.items())
        ids = self.ids(np.asarray([row for row, _, _ in found], dtype=np.int64))
        return [{"id": name, "role": role, "reason": why} for name, (_, role, why) in zip(ids, found, strict=True)]

    def ids(self, rows: np.ndarray) -> list[str]:
        """The ids of rows; of several sources, with the name of theirs before it."""
        names = [""] * len(rows)
        for source, where, local in split(rows, self.starts):
            chosen = self.sources[source].select(local)
            prefix = f"{chosen.name}: " if len(self.sources) > 1 else ""
            for place, name in zip(where, chosen.ids(), strict=True):
                names[place] = prefix + name
        return names

    def hashes(self, role: str, like: Table) -> np.ndarray:
        """(items,) int64 identities of a role's items, equal to those of ``like`` where the items are: where that table
        has originals of images, the images here are decoded as such."""
        processor, stored = like._reading.embedder(role).processor, like._stored.get(role)
        if stored is None or stored == self._stored.get(role) or not isinstance(processor, ImageProcessor):
            return self.columns[role].hashes
        found = [
            original_hashes(
                *(rows, name),
                size=processor.size,
                stored=stored,
                resize=processor.resize,
                exact_decoding=processor.exact_decoding,
                show_progress=self._show_progress,
            )
            for rows, name in self._images(role)[0]
        ]
        return np.concatenate(found)

    def identities(self, role: str) -> np.ndarray:
        """(R,) int64 identities of the first item of a role in every usable row."""
        column = self.columns[role]
        items, owner = column.items(self.positions)
        return column.hashes[items[np.unique(owner, return_index=True)[1]]]

    def features(self, role: str, modality: str, name: str, encoder: Encoder) -> Column:
        """The features that the tower of another model, called ``name``, has of a role's items as they are.

        They are numbered as the items of the role's own column. Of the prompts of the role, those are put before the
        texts that the other model knows by the same name.
        """
        embedder = encoder.embedder(modality)
        plain = self._open(role, embedder.processor, changed=False, foreign=True)
        if self._scratch is None:
            return plain
        return FeatureColumn(plain, embedder, self._scratch / f"{name}_{modality}", self._device)

    def _explode(self, role: str) -> None:
        """Make each item of the lists in a role's column a row of its own."""
        if self._reading.columns.get(role) not in ("image", "text"):
            roles = ", ".join(name for name, of in self._reading.columns.items() if of in ("image", "text"))
            raise MmclError(f"data.explode: '{role}' is no role of images or texts here; these are {roles}")
        names = [self.config.data.column_of(role, source) for source in self.settings]
        parts = []
        for rows, name in zip(self.sources, names, strict=True):
            with columns_named_by({f"data.columns.{role}": name}):
                parts.append(rows.exploded(name))
        self.sources, self._owners = [rows for rows, _ in parts], [owner for _, owner in parts]

    @property
    def _label_by_row(self) -> bool:
        """Whether the label of a row is the cell that it was exploded from, since no column is named for it."""
        named = "label" in self.config.data.columns or any("label" in source.columns for source in self.settings)
        return self.sources is not self._unexploded and not named

    def _images(self, role: str) -> tuple[list[tuple[Rows, str]], RowItems | None]:
        """The rows and columns of a role's images in each source, and which of them belong to each row of the table;
        None where these rows are the images."""
        columns = [self._images_of_column(name) for name in self._numbered(role)]
        if len(columns) == 1:
            return columns[0]
        every = RowItems(np.arange(self.total), np.arange(self.total + 1))
        of_rows = [every if of_row is None else of_row for _, of_row in columns]
        counts = [sum(len(rows) for rows, _ in named) for named, _ in columns]
        return [part for named, _ in columns for part in named], RowItems.joined(of_rows, counts)

    def _images_of_column(self, role: str) -> tuple[list[tuple[Rows, str]], RowItems | None]:
        """The same of one of the role's columns. Rows that were exploded by another role share the images, and so
        their pixels."""
        rows_of = self.sources if role == self.config.data.explode else self._unexploded
        named = [(rows, str(name)) for rows, name in zip(rows_of, self._names(role), strict=True)]
        if rows_of is self.sources and not any(rows.holds_lists(name) for rows, name in named):
            return named, None
        parts, counts, start = [], [], 0
        for number, (rows, name) in enumerate(named):
            items, row_of = rows.exploded(name)
            first = np.searchsorted(row_of, np.arange(len(rows) + 1))
            owners = np.arange(len(rows)) if rows_of is self.sources else self._owners[number]
            numbers, _ = all_items(first, owners)
            parts.append(numbers + start)
            counts.append((first[1:] - first[:-1])[owners])
            start += len(items)
            if rows.holds_lists(name):
                named[number] = items, name
        return named, RowItems(np.concatenate(parts), np.cumsum([0, *np.concatenate(counts)]))

    def _read_of(self, role: str) -> list[str]:
        """The roles by which the columns of a role are called: its own, or those of the fields of its tower."""
        if role == "label" and self._label_by_row:
            return []
        if self._reading.columns[role] in VALUES:
            return [role]
        processor = self._reading.embedder(role).processor
        return processor.columns if isinstance(processor, TableProcessor) else self._numbered(role)

    def _numbered(self, role: str) -> list[str]:
        """The roles of a role's columns: more than one only of images to learn from."""
        several = self._augmented and self._reading.columns.get(role) == "image"
        return self.config.data.numbered(role) if several else [role]

    def _names(self, role: str) -> list[str | None]:
        """The column of a role in each source; None in one that need not have it, since others have."""
        names = [self.config.data.column_of(role, source) for source in self.settings]
        there = [name in rows.column_names for name, rows in zip(names, self.sources, strict=True)]
        if role not in self._optional or not any(there):
            return list(names)
        named_here = [role in source.columns for source in self.settings]
        return [name if here or named else None for name, here, named in zip(names, there, named_here, strict=True)]

    def _reader(self, role: str, source: int, processor: TextProcessor, foreign: bool) -> TextReader:
        """How ``processor`` reads a role in a source; one that is ``foreign`` need not have the prompt."""
        settings, setting = self.settings[source], f"data.prompts.{role}"
        prompt = self.config.data.prompts.get(role)
        if isinstance(settings, TrainSourceConfig) and role in settings.prompts:
            prompt, setting = settings.prompts[role], f"{settings.source}: prompts.{role}"
        if foreign and prompt not in processor.prompts:
            prompt = None
        return TextReader(processor, prompt, setting)

    def _open(
        self,
        role: str,
        processor: Any,
        changed: bool,
        foreign: bool = False,
        stored: int | None = None,
        section: str | None = None,
    ) -> Column:
        """The column of a role in every source, as ``processor`` makes it; of images, as originals of at most
        ``stored`` pixels where that is given. ``section`` is that of the tower, if it is not the role's own."""
        data = self.config.data
        common: dict[str, Any] = {"on_error": data.on_error, "show_progress": self._show_progress}
        names = self._names(role)
        if isinstance(processor, ImageProcessor):
            common |= {"size": processor.size, "resize": processor.resize}
            common["exact_decoding"] = processor.exact_decoding
            common["cache_gb"] = data.cache_gb
            named, of_rows = self._images(role)

            def squares() -> list[Pixels[np.ndarray]]:
                return [open_pixels(*of, **common) for of in named]

            opened = squares() if stored is None else [open_originals(*of, stored=stored, **common) for of in named]
            collate = None if processor.patch is None else processor.collate
            pixels = PixelColumn(opened, None if stored is None else squares, of_rows, collate)
            if pixels.dropped and not foreign and distributed.rank() == 0:
                log.warning(
                    "%s: %d images in column '%s' cannot be used, of rows that have others",
                    *(self.name, pixels.dropped, "', '".join(dict.fromkeys(name for _, name in named))),
                )
            return pixels
        if role in self._optional:
            common["on_error"] = "skip"
        parts, section = [], section or self.config.model.where(self._reading.tower(role))
        for number, (rows, name) in enumerate(zip(self.sources, names, strict=True)):
            reader = self._reader(role, number, processor, foreign)
            tokens = open_tokens(
                rows, name, reader.tokenize, tokenizer_key=reader.key, identify=reader.identities, **common
            )
            if tokens.cut and distributed.rank() == 0:
                log.warning(
                    "%s: %d of %d texts in column '%s' are longer than %d tokens and are cut there%s",
                    *(rows.name, tokens.cut, len(tokens.hashes), name, processor.max_tokens),
                    "" if foreign else f"; {section}.max_tokens raises the limit where the model can read more",
                )
            parts.append(TextPart(tokens, reader, rows, name))
        changes = self._augmentation if changed else None
        augmentation = changes and changes.on_stream(self._reading.text_stream(role))
        column = TokenColumn(parts, augmentation, role in self._optional)
        if role in self._optional and not len(column.hashes):
            column_name = data.column_of(role, self.settings[0])
            raise MmclError(
                f"{self.name}: none of the {self.total} rows has a text in column '{column_name}'; leave {role} out of "
                "data.columns, or name another column"
            )
        if role in self._optional and len(column.lacking) and not foreign and distributed.rank() == 0:
            log.info(
                "%s: %d of %d rows have no %s, and are used without", self.name, len(column.lacking), self.total, role
            )
        return column

    def _group(self, role: str, processor: TableProcessor) -> Column:
        """The columns of a role whose tower reads several."""
        section = f"{self.config.model.where(self._reading.tower(role))}.fields"
        fields: dict[str, Column] = {
            name: self._open(name, of, changed=False, section=f"{section}.{name}")
            if isinstance(of, ImageProcessor | TextProcessor)
            else self._cells(name, of)
            for name, of in processor.fields.items()
        }
        return TableColumn(fields, self.total)

    def _cells(self, role: str, field: Cells) -> Column:
        """A field of categories or numbers."""
        found: list[np.ndarray] = []
        hashes: list[np.ndarray] = []
        names, others = self._names(role), field.without if isinstance(field, Categories) else None
        for rows, name, source in zip(self.sources, names, self.settings, strict=True):
            cells, other = rows.column(str(name)), None
            if others is not None and (named := self.config.data.column_of(others, source)) in rows.column_names:
                other = rows.column(named)
            try:
                read, unknown = field.read(cells, other)
            except ValueError as error:
                raise ColumnError(f"{rows.name}: column '{name}' holds {error}", str(name)) from None
            if unknown and distributed.rank() == 0:
                log.warning(
                    "%s: %d values in column '%s' are not known from the training rows, and count as missing",
                    *(rows.name, unknown, name),
                )
            found += read
            hashes.append(np.fromiter((stable_hash(str(cell)) for cell in cells), np.int64, count=len(cells)))
        return CellColumn(field, found, np.concatenate(hashes))

    def _values(self, role: str, modality: str) -> Column:
        if role == "label" and self._label_by_row:
            cells = [[f"{number}:{row}" for row in rows.tolist()] for number, rows in enumerate(self._owners)]
            return ValueColumn(modality, cells)
        names = [self.config.data.column_of(role, source) for source in self.settings]
        read = Rows.labels if modality == "label" else Rows.numbers
        column = ValueColumn(modality, [read(rows, name) for rows, name in zip(self.sources, names, strict=True)])
        if column.problems and self.config.data.on_error == "fail":
            source, _, bad = next(split(np.array(sorted(column.problems)), self.starts))
            rows = self.sources[source]
            raise MmclError(
                f"{rows.name}: row {rows.select(bad[:1]).ids()[0]} has no {modality} in column '{names[source]}' "
                f"({len(bad)} rows in all); fill it, or set data.on_error to skip"
            )
        return column
