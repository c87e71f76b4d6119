"""Batches of tables: rows shuffled anew in every epoch, with the identity of everything."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmcl.config.schema import Config, SourceConfig
from mmcl.data.identity import mix
from mmcl.data.pixels import open_pixels
from mmcl.data.rows import Rows
from mmcl.data.sampler import Sampler
from mmcl.data.sources import open_source
from mmcl.data.tokens import open_tokens
from mmcl.methods import Batch
from mmcl.models.embedder import Embedder
from mmcl.models.encoder import Encoder
from mmcl.models.image_tower import ImageTower
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError
from mmcl.training.build import augments
from mmcl.training.columns import Column, FeatureColumn, PixelColumn, TokenColumn
from mmcl.training.feed import prefetch


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
        if len(sources) > 1:
            raise MmclError("data.mix: several sources are not supported yet")
        self.config = config
        self.rows = open_source(sources[0].source, split=sources[0].split)
        self.columns: dict[str, Column] = {}
        names = {role: config.data.columns.get(role, role) for role in roles}
        self.rows.require(names.values())
        for role, modality in roles.items():
            embedder = encoder.embedder(modality)
            column = self._open(self.rows, names[role], embedder, config, show_progress)
            if embedder.frozen and not (modality == "image" and augmented and augments(config)):
                column = FeatureColumn(column, embedder, scratch, device)
            self.columns[role] = column
        problems = {row for column in self.columns.values() for row in column.problems}
        self.positions = np.setdiff1d(
            np.arange(len(self.rows)), np.fromiter(problems, dtype=np.int64, count=len(problems))
        )
        self._pools = {role: self._distinct(role) for role in extra}
        self._extra = {role: min(count, len(self._pools[role][0])) for role, count in extra.items()}

    @property
    def name(self) -> str:
        """What messages call the rows."""
        return self.rows.name

    @property
    def total(self) -> int:
        """Rows, usable or not."""
        return len(self.rows)

    @property
    def samples(self) -> int:
        """Rows of an epoch."""
        return len(self.positions)

    @property
    def fingerprint(self) -> str:
        """Changes when the rows do."""
        return f"{self.rows.fingerprint}-{len(self.positions)}"

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
        ids = self._ids([row for row, _, _ in found]) if found else []
        return [{"id": name, "role": role, "reason": why} for name, (_, role, why) in zip(ids, found, strict=True)]

    def names(self, batch: Batch) -> list[str]:
        """The ids of a batch's rows."""
        return self._ids(batch.rows.numpy())

    def batches(self, start: int, stop: int, position: Any = None) -> Generator[Batch, None, None]:
        """This process's share of the global batches from ``start`` up to ``stop``, numbered through the epochs."""

        def made() -> Iterator[Batch]:
            for number, rows in self._sampler.batches(start, stop):
                yield self.batch(rows, number, epoch=number // len(self._sampler))

        return prefetch(made(), self.config.data.prefetch)

    def batch(self, rows: np.ndarray, number: int, epoch: int) -> Batch:
        """The batch of these rows as ``epoch`` sees them; ``number`` is that of the global batch in the run."""
        positions = torch.from_numpy(np.ascontiguousarray(rows))
        seeds = mix(positions, self.config.seed, epoch)
        inputs, ids = {}, []
        for role, column in self.columns.items():
            items = column.choose(rows, seeds)
            inputs[role] = column.inputs(items)
            ids.append(torch.from_numpy(np.asarray(column.hashes[items])))
        batch = Batch(inputs, torch.stack(ids, dim=1), seeds, positions)
        for role, count in self._extra.items():
            pool, pool_ids = self._pools[role]
            drawn = np.random.default_rng([self.config.seed, number]).permutation(len(pool))[:count]
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
        if len(self.positions) < batch:
            raise MmclError(
                f"{self.name}: {len(self.positions)} usable rows do not fill a batch of {batch}; "
                "lower training.batch_size"
            )
        if batch % world:
            raise MmclError(f"training.batch_size {batch} cannot be divided evenly over {world} processes")
        return Sampler(self.positions, batch, self.config.seed, distributed.rank(), world)

    def _ids(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        return self.rows.select(rows).ids()

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

    @staticmethod
    def _open(rows: Rows, name: str, embedder: Embedder, config: Config, show_progress: bool | None) -> Column:
        tower, data = embedder.tower, config.data
        if isinstance(tower, ImageTower):
            pixels = open_pixels(
                rows,
                name,
                size=tower.size,
                resize=tower.resize,
                on_error=data.on_error,
                cache_gb=data.cache_gb,
                show_progress=show_progress,
            )
            return PixelColumn(pixels)
        tokens = open_tokens(
            rows,
            name,
            tower.tokenize,
            tokenizer_key=tower.key(),
            on_error=data.on_error,
            show_progress=show_progress,
        )
        return TokenColumn(tokens, tower)
