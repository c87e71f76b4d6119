"""Batches of tables: rows shuffled anew in every epoch, with the identity of everything."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mmcl.config.data import SourceConfig
from mmcl.config.schema import Config
from mmcl.data.batches.batch import MINED, Batch, Inputs
from mmcl.data.batches.columns import Column, PixelColumn, TokenColumn, ValueColumn
from mmcl.data.batches.distinct import Identities
from mmcl.data.batches.reading import Reading
from mmcl.data.batches.sampler import Draw, Sampler, epoch_counts
from mmcl.data.batches.table import Table
from mmcl.data.batches.views import VALUES
from mmcl.data.batches.workers import by_workers
from mmcl.data.identity import mix
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError
from mmcl.runtime.prefetch import prefetch

log = logging.getLogger("mmcl")
MINED_DRAW = 0x313ED  # mixed into the seeds of the random changes of mined negatives


class HardNegatives(NamedTuple):
    """Items that are negatives of rows.

    Attributes:
        role: whose column they are of.
        items: (C,) those there are to choose from.
        ids: (C, K) their identities, as a batch has them.
        of_rows: (rows, count) places in ``items`` of each row's; rows are numbered as in the feed.
    """

    role: str
    items: np.ndarray
    ids: np.ndarray
    of_rows: np.ndarray


class TableFeed(Table):
    """The rows of tables, ready to be batched: a :class:`~mmcl.data.batches.feed.Feed`, whose arguments are
    explained at :func:`~mmcl.data.batches.feed.open_feed`.

    Attributes:
        hard: hard negatives that every batch carries for its rows, if any. Batches asked for before it is set are
            without, or with those that were there.
    """

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        reading: Reading,
        config: Config,
        scratch: Path | None,
        *,
        augmented: bool,
        device: torch.device,
        show_progress: bool | None = None,
    ) -> None:
        super().__init__(
            sources,
            reading,
            config,
            scratch,
            augmented=augmented,
            device=device,
            show_progress=show_progress,
        )
        self.require_rows()
        self._require_labels()
        self._pin = device.type == "cuda"
        if augmented and not config.data.workers:  # which other processes could not read
            self._move_images(device)
        # Texts are changed here, with random numbers of each draw; images by the views, on the device, but each draw of
        # a row with several may be of another one.
        self._draws_of = {
            role: reading.draws(role)
            for role, modality in reading.columns.items()
            if augmented and (self.columns[role].several or (modality == "text" and config.augments("text")))
        }
        self._references: dict[str, dict[str, Column]] = {
            name: {
                role: self.features(role, modality, name, encoder)
                for role, modality in reading.columns.items()
                if modality not in VALUES
            }
            for name, encoder in (reading.references if augmented else {}).items()
        }
        self.hard: HardNegatives | None = None
        self._extra = dict(reading.extra) if augmented else {}
        self._pools = {name: self.distinct(extra.column)[:2] for name, extra in self._extra.items()}
        for name, extra in self._extra.items():
            if (count := self._count(name)) < distributed.world_size():
                raise MmclError(
                    f"method.extra_{extra.column}s: {count} distinct ones are fewer than the "
                    f"{distributed.world_size()} processes that share them; raise it, or set it to 0"
                )

    def _require_labels(self) -> None:
        """Raise ``MmclError`` where a label is read that is the same for all rows."""
        column = self.columns.get("label")
        if isinstance(column, ValueColumn) and len(np.unique(column.values[self.positions])) == 1:
            names = sorted({str(self.config.data.column_of("label", source)) for source in self.settings})
            raise MmclError(
                f"{self.name}: all {len(self.positions)} rows have one and the same label in column '{names[0]}', so "
                f"that method '{self.config.method.name}' has nothing to tell apart; name another with "
                "data.columns.label"
            )

    def _move_images(self, device: torch.device) -> None:
        for role, column in self.columns.items():
            if isinstance(column, PixelColumn) and column.fits(device):
                taken = column.move_to(device)
                log.info("%s: the images of '%s' stay on the device, in %.2f GB", self.name, role, taken / 1e9)

    @property
    def samples(self) -> int:
        """Rows of an epoch."""
        return sum(self._sampler.counts)

    @property
    def extra_count(self) -> int:
        """Extra items beside a global batch."""
        return sum(map(self._count, self._extra))

    def _count(self, name: str) -> int:
        """Of extra items: no more than there are."""
        return min(self._extra[name].count, len(self._pools[name][0]))

    @property
    def longest_texts(self) -> dict[str, int]:
        """Tokens that a text of each role can have; without the roles whose tower's features are kept."""
        return {role: column.longest for role, column in self.columns.items() if isinstance(column, TokenColumn)}

    def __len__(self) -> int:
        """Batches of an epoch. Raises ``MmclError`` if the rows do not fill one."""
        return len(self._sampler)

    def names(self, batch: Batch) -> list[str]:
        """The ids of a batch's rows; of several sources, with the name of theirs before it."""
        return self.ids(batch.rows.numpy())

    def batches(self, start: int, stop: int, position: Any = None) -> Generator[Batch, None, None]:
        """This process's share of the global batches from ``start`` up to ``stop``, numbered through the epochs."""
        data, draws = self.config.data, self._draws(start, stop)
        made: Iterator[Batch] = map(self.batch, draws)
        if data.workers:
            made = by_workers(self.batch, draws, data.workers, data.prefetch, self._in_worker)
        if self._pin:
            made = map(Batch.pin_memory, made)
        return prefetch(made, data.prefetch)

    def _draws(self, start: int, stop: int) -> Iterator[Draw]:
        """A small source can fill its batches in one epoch and not in another, which has other rows of it twice."""
        try:
            yield from self._sampler.batches(start, stop)
        except ValueError as error:
            raise MmclError(f"data.distinct: {error}; lower training.batch_size") from None

    def batch(self, draw: Draw) -> Batch:
        """The batch of the rows drawn, as the current pass of their source sees them."""
        rows = torch.from_numpy(np.ascontiguousarray(draw.rows))
        seeds = mix(rows, self.config.seed, torch.from_numpy(np.ascontiguousarray(draw.passes)))
        inputs: dict[str, Inputs] = {}
        draws: dict[str, list[Inputs]] = {}
        references: dict[str, dict[str, Inputs]] = {name: {} for name in self._references}
        ids = []
        for role, column in self.columns.items():
            items = column.choose(draw.rows, seeds)
            inputs[role] = column.inputs(items, seeds)
            for number in range(1, self._draws_of.get(role, 1)):
                if column.several:
                    drawn = column.inputs(column.choose(draw.rows, seeds, number), seeds)
                else:
                    drawn = column.inputs(items, mix(seeds, number))
                draws.setdefault(role, []).append(drawn)
            for name, features in self._references.items():  # whose items are numbered as ours are
                if role in features:
                    references[name][role] = features[role].inputs(items)
            if column.identified:
                ids.append(torch.from_numpy(column.names(draw.rows, items)))
        batch = Batch(inputs, torch.stack(ids, dim=1), seeds, rows, draws=draws, references=references)
        for name, extra in self._extra.items():
            pool, pool_ids = self._pools[name]
            chosen = np.random.default_rng([self.config.seed, draw.number]).permutation(len(pool))[: self._count(name)]
            mine = np.array_split(chosen, distributed.world_size())[distributed.rank()]
            batch.extra[name] = self.columns[extra.column].inputs(pool[mine])
            batch.extra_ids[name] = torch.from_numpy(pool_ids[mine])
        if self.hard is not None:
            self._add_hard(batch, self.hard)
        return batch

    def _add_hard(self, batch: Batch, hard: HardNegatives) -> None:
        chosen = hard.of_rows[batch.rows.numpy()]
        items = hard.items[chosen].reshape(-1)
        # Changed at random as their column is: otherwise that alone would tell them from the partners.
        numbers = torch.arange(MINED_DRAW, MINED_DRAW + chosen.shape[1])
        seeds = mix(batch.seeds[:, None].expand(chosen.shape), numbers).reshape(-1)
        column = self.columns[hard.role]
        # Images are changed by the views, through which no extra item passes.
        batch.extra[MINED] = column.inputs(items, seeds if isinstance(column, TokenColumn) else None)
        batch.extra_ids[MINED] = torch.from_numpy(hard.ids[chosen.reshape(-1)])
        if "guide" in self._references:
            batch.references["guide"][MINED] = self._references["guide"][hard.role].inputs(items)

    @cached_property
    def _sampler(self) -> Sampler:
        """Made when first asked for: a feed that is only judged may have less than a batch."""
        batch, world = self.config.training.batch_size, distributed.world_size()
        positions = np.split(self.positions, np.searchsorted(self.positions, self.starts[1:-1]))
        for rows, usable in zip(self.sources, positions, strict=True):
            if not len(usable):
                raise MmclError(f"{rows.name}: none of its {len(rows)} rows can be used; leave it out of data.mix")
        samples = [getattr(source, "samples", None) for source in self.settings]
        weights = [getattr(source, "weight", None) for source in self.settings]
        try:
            counts = epoch_counts([len(usable) for usable in positions], samples, weights)
        except ValueError as error:
            raise MmclError(f"data.train and data.mix: {error}") from None
        if sum(counts) < batch:
            raise MmclError(
                f"{self.name}: {sum(counts)} usable rows do not fill a batch of {batch}; lower training.batch_size"
            )
        if batch % world:
            raise MmclError(f"training.batch_size {batch} cannot be divided evenly over {world} processes")
        data = self.config.data
        try:
            sampler = Sampler(
                positions,
                batch,
                self.config.seed,
                distributed.rank(),
                world,
                counts=counts,
                one_source=data.batches == "one_source",
                identities=self._identities() if data.distinct else None,
                labels=self._labels(),
                per_label=data.per_label if isinstance(data.per_label, int) else None,
            )
            if data.distinct and (repeated := sampler.repeated(0)) and distributed.rank() == 0:
                log.warning(
                    "%s: %d of %d rows of the first epoch share a text or image with so many others that no batch is "
                    "left for them; other rows come more often instead",
                    self.name,
                    repeated,
                    sum(sampler.counts),
                )
        except ValueError as error:
            setting = "data.distinct" if data.distinct else "data.batches"
            raise MmclError(f"{setting}: {error}; lower training.batch_size") from None
        return sampler

    def _labels(self) -> np.ndarray | None:
        """(rows,) labels of all rows, by which batches bring them together, if they do."""
        data, column = self.config.data, self.columns.get("label")
        if data.per_label is None and (data.explode is None or column is None):
            return None
        if not isinstance(column, ValueColumn):
            raise MmclError(
                f"data.per_label: method '{self.config.method.name}' reads no labels here; name their column with "
                "data.columns.label, if it can, or leave data.per_label out"
            )
        if data.distinct:
            raise MmclError(
                f"data.distinct keeps rows apart that data.{'explode' if data.explode else 'per_label'} brings "
                "together; leave one of the two out"
            )
        return column.values

    def _identities(self) -> Identities:
        """What every usable row has: all its texts and images, whatever column they stand in."""
        found = [
            (self.positions[owner], column.hashes[items])
            for column in self.columns.values()
            if column.identified
            for items, owner in [column.items(self.positions)]
        ]
        rows, hashes = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return Identities(rows, hashes, self.total)

    def _in_worker(self) -> None:
        """In a process that prepares batches beside others: one thread is its share of the machine."""
        for column in [*self.columns.values(), *(c for named in self._references.values() for c in named.values())]:
            column.use_threads(1)

    def distinct(self, role: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One item (M,) of each content among the usable rows, its identities (M, K) as a batch has them, the label
        last where rows have one, and the row (M,) that it was taken from."""
        items, owner = self.columns[role].items(self.positions)
        _, first = np.unique(self.columns[role].hashes[items], return_index=True)
        items, rows = items[first], self.positions[owner[first]]
        seeds = torch.zeros(len(rows), dtype=torch.int64)
        ids = [
            column.names(rows, items if name == role else column.choose(rows, seeds))
            for name, column in self.columns.items()
            if column.identified
        ]
        if isinstance(label := self.columns.get("label"), ValueColumn):
            ids.append(label.values[rows])
        return items, np.stack(ids, axis=1), rows
