"""Batches of tables: rows shuffled anew in every epoch, with the identity of everything."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmcl.config.data import JudgedSourceConfig, SourceConfig, TextAugmentationConfig
from mmcl.config.schema import Config
from mmcl.data.identity import mix
from mmcl.data.pixels import open_pixels
from mmcl.data.sampler import Draw, Sampler, epoch_counts
from mmcl.data.sources import open_source
from mmcl.data.tokens import open_tokens
from mmcl.methods import Batch
from mmcl.models.encoder import Encoder
from mmcl.models.image_tower import ImageTower
from mmcl.models.text_tower import TextTower
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError
from mmcl.training.build import augments
from mmcl.training.columns import Column, FeatureColumn, PixelColumn, TokenColumn, split
from mmcl.training.feed import pinned, prefetch
from mmcl.training.workers import by_workers


class TableFeed:
    """The rows of tables, ready to be batched: a :class:`~mmcl.training.feed.Feed`, whose arguments are explained at
    :func:`~mmcl.training.feed.open_feed`.

    Attributes:
        columns: role to what its embedder gets.
        positions: (N,) the usable rows.
    """

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        roles: dict[str, str],
        config: Config,
        encoder: Encoder,
        scratch: Path,
        *,
        extra: dict[str, int],
        teacher: Encoder | None = None,
        augmented: bool,
        device: torch.device,
        show_progress: bool | None = None,
        pin: bool = False,
    ) -> None:
        self.config = config
        self.sources = [open_source(source.source, split=source.split) for source in sources]
        self._starts = np.cumsum([0, *map(len, self.sources)])
        # A source to judge by may call its columns otherwise.
        self._names = {role: config.data.columns.get(role, role) for role in roles}
        self._names |= next((dict(s.columns) for s in sources if isinstance(s, JudgedSourceConfig)), {})
        for rows in self.sources:
            rows.require(self._names[role] for role in roles)
        self._settings = sources
        self._pin = pin
        self.columns: dict[str, Column] = {}
        self._teacher: dict[str, Column] = {}
        for role, modality in roles.items():
            embedder, changed = encoder.embedder(modality), augmented and _changes(modality, config)
            column = self._open(role, embedder.tower, changed, show_progress)
            if embedder.frozen and not changed:
                column = FeatureColumn(column, embedder.tower, scratch / modality, device)
            self.columns[role] = column
            if teacher is not None:
                tower = teacher.embedder(modality).tower
                plain = self._open(role, tower, False, show_progress)
                self._teacher[role] = FeatureColumn(plain, tower, scratch / f"teacher_{modality}", device)
        problems = {row for column in self.columns.values() for row in column.problems}
        self.positions = np.setdiff1d(np.arange(self.total), np.fromiter(problems, dtype=np.int64, count=len(problems)))
        self._pools = {role: self._distinct(role) for role in extra}
        self._extra = {role: min(count, len(self._pools[role][0])) for role, count in extra.items()}

    @property
    def name(self) -> str:
        """What messages call the rows."""
        return " + ".join(rows.name for rows in self.sources)

    @property
    def total(self) -> int:
        """Rows, usable or not."""
        return int(self._starts[-1])

    @property
    def samples(self) -> int:
        """Rows of an epoch."""
        return sum(self._sampler.counts)

    @property
    def fingerprint(self) -> str:
        """Changes when the rows do."""
        return "-".join([*(rows.fingerprint for rows in self.sources), str(len(self.positions))])

    @property
    def extra_count(self) -> int:
        """Further items beside a global batch."""
        return sum(self._extra.values())

    def __len__(self) -> int:
        """Batches of an epoch. Raises ``MmclError`` if the rows do not fill one."""
        return len(self._sampler)

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
        ids = self._ids(np.asarray([row for row, _, _ in found], dtype=np.int64))
        return [{"id": name, "role": role, "reason": why} for name, (_, role, why) in zip(ids, found, strict=True)]

    def names(self, batch: Batch) -> list[str]:
        """The ids of a batch's rows; of several sources, with the name of theirs before it."""
        return self._ids(batch.rows.numpy())

    def batches(self, start: int, stop: int, position: Any = None) -> Generator[Batch, None, None]:
        """This process's share of the global batches from ``start`` up to ``stop``, numbered through the epochs."""
        data, draws = self.config.data, self._sampler.batches(start, stop)
        made: Iterator[Batch] = map(self.batch, draws)
        if data.workers:
            made = by_workers(self.batch, draws, data.workers, data.prefetch, self._in_worker)
        if self._pin:
            made = map(pinned, made)
        return prefetch(made, data.prefetch)

    def batch(self, draw: Draw) -> Batch:
        """The batch of the rows drawn, as the current pass of their source sees them."""
        rows = torch.from_numpy(np.ascontiguousarray(draw.rows))
        seeds = mix(rows, self.config.seed, torch.from_numpy(np.ascontiguousarray(draw.passes)))
        inputs, ids = {}, []
        for role, column in self.columns.items():
            items = column.choose(draw.rows, seeds)
            inputs[role] = column.inputs(items, seeds)
            ids.append(torch.from_numpy(np.asarray(column.hashes[items])))
            if role in self._teacher:  # its captions are numbered as ours are
                inputs[f"teacher_{role}"] = self._teacher[role].inputs(items)
        batch = Batch(inputs, torch.stack(ids, dim=1), seeds, rows)
        for role, count in self._extra.items():
            pool, pool_ids = self._pools[role]
            drawn = np.random.default_rng([self.config.seed, draw.number]).permutation(len(pool))[:count]
            world = distributed.world_size()
            mine = drawn[: count // world * world].reshape(world, -1)[distributed.rank()]
            batch.extra[role] = self.columns[role].inputs(pool[mine])
            batch.extra_ids[role] = torch.from_numpy(pool_ids[mine])
        return batch

    @cached_property
    def _sampler(self) -> Sampler:
        """Made when first asked for: a feed that is only judged may have less than a batch."""
        self.require_rows()
        batch, world = self.config.training.batch_size, distributed.world_size()
        positions = np.split(self.positions, np.searchsorted(self.positions, self._starts[1:-1]))
        for rows, usable in zip(self.sources, positions, strict=True):
            if not len(usable):
                raise MmclError(f"{rows.name}: none of its {len(rows)} rows can be used; leave it out of data.mix")
        samples = [getattr(source, "samples", None) for source in self._settings]
        weights = [getattr(source, "weight", None) for source in self._settings]
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
        return Sampler(positions, batch, self.config.seed, distributed.rank(), world, counts=counts)

    def _ids(self, rows: np.ndarray) -> list[str]:
        names = [""] * len(rows)
        for source, where, local in split(rows, self._starts):
            chosen = self.sources[source].select(local)
            prefix = f"{chosen.name}: " if len(self.sources) > 1 else ""
            for place, name in zip(where, chosen.ids(), strict=True):
                names[place] = prefix + name
        return names

    def _in_worker(self) -> None:
        """In a process that prepares batches beside others: one thread is its share of the machine."""
        for column in [*self.columns.values(), *self._teacher.values()]:
            column.use_threads(1)

    def _distinct(self, role: str) -> tuple[np.ndarray, np.ndarray]:
        """One item of each content among the usable rows, and its identities (M, K) as a batch has them."""
        items, owner = self.columns[role].items(self.positions)
        _, first = np.unique(self.columns[role].hashes[items], return_index=True)
        items, rows = items[first], self.positions[owner[first]]
        seeds = torch.zeros(len(rows), dtype=torch.int64)
        ids = [
            column.hashes[items if name == role else column.choose(rows, seeds)]
            for name, column in self.columns.items()
        ]
        return items, np.stack(ids, axis=1)

    def _open(self, role: str, tower: ImageTower | TextTower, changed: bool, show_progress: bool | None) -> Column:
        """The column of a role in every source, as ``tower`` wants it."""
        data, name = self.config.data, self._names[role]
        common: dict[str, Any] = {"on_error": data.on_error, "show_progress": show_progress}
        if isinstance(tower, ImageTower):
            common |= {"size": tower.size, "resize": tower.resize, "cache_gb": data.cache_gb}
            return PixelColumn([open_pixels(rows, name, **common) for rows in self.sources])
        common |= {"tokenizer_key": tower.key()}
        tokens = [open_tokens(rows, name, tower.tokenize, **common) for rows in self.sources]
        return TokenColumn(tokens, tower, self.config.text_augmentation if changed else None)


def _changes(modality: str, config: Config) -> bool:
    """Whether training changes the items of a modality at random, so that their features cannot be kept."""
    return augments(config) if modality == "image" else config.text_augmentation != TextAugmentationConfig()
