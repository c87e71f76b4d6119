"""The shards of one or several sources: dealt together, or pools that are mixed by weight."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from mmcl.config.data import SourceConfig
from mmcl.data.sources.tar.count import count_samples
from mmcl.data.sources.tar.names import is_local, shard_name
from mmcl.data.sources.tar.shards import list_shards
from mmcl.runtime.errors import MmclError


class Pools:
    """Pools of shards: the shards of a pool are dealt together, and the pools are mixed by weight.

    With weights every source is a pool. Without, the shards of all sources are one pool, whose samples come once in an
    epoch each; or, if they are to be ``apart``, every source is a pool with its number of samples as the weight.

    Args:
        sources: where the shards are.
        apart: whether each batch has samples of one source alone.

    Attributes:
        name: what messages call the data.
        listed: the shards of each source.
        shards: the shards of each pool.

    Raises:
        MmclError: a source is described as no shards can be, or the weights are of some sources only.
    """

    def __init__(self, sources: Sequence[SourceConfig], *, apart: bool = False) -> None:
        self.name = "::".join(source.source for source in sources)
        _refuse(sources)
        self.listed = [list_shards(source.source) for source in sources]
        self._stated = [getattr(source, "samples", None) for source in sources]
        self._weights = _weights(sources)
        self.shards = self.listed if self._weights or apart else [[shard for shards in self.listed for shard in shards]]
        self._counts: list[int] = []

    def count(self, show_progress: bool | None = None) -> int:
        """Samples of an epoch: as the sources say, and counted where they do not."""
        self._counts = [
            stated or count_samples(shards, show_progress)
            for stated, shards in zip(self._stated, self.listed, strict=True)
        ]
        return sum(self._counts)

    def require_shares(self, processes: int, workers: int) -> None:
        """Raise ``MmclError`` unless every worker of every process can have a shard of each pool."""
        for pool in self.shards:
            if len(pool) < processes * workers:
                raise MmclError(
                    f"{self.name}: {len(pool)} shards cannot be dealt over {processes} processes × {workers} workers; "
                    "lower data.workers, or write more and smaller shards"
                )

    @property
    def weights(self) -> Sequence[float]:
        """Shares of the pools, in any unit, once the samples are counted."""
        return self._weights or (self._counts if len(self.shards) > 1 else [1.0])

    @property
    def fingerprint(self) -> str:
        """Changes when the shards do, as far as their names and, of local ones, their sizes tell."""
        shards = [shard for pool in self.shards for shard in pool]
        sizes = [Path(shard).stat().st_size if is_local(shard) else 0 for shard in shards]
        content = repr((list(map(shard_name, shards)), sizes, sum(self._counts)))
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _refuse(sources: Sequence[SourceConfig]) -> None:
    """Raise ``MmclError`` for settings that shards have not."""
    first = sources[0]
    for source in sources:
        if source.split is not None:
            raise MmclError(f"{source.source}: tar shards have no splits; leave out split '{source.split}'")
        if source.separator is not None:
            raise MmclError(f"{source.source}: a separator is of CSV files; leave it out of tar shards")
        for key in ("columns", "prompts"):
            if getattr(source, key, {}) != getattr(first, key, {}):
                raise MmclError(
                    f"{source.source}: {key} of its own, which tar shards that are mixed cannot have; set data.{key}"
                )


def _weights(sources: Sequence[SourceConfig]) -> list[float]:
    """The weight of each source; empty if they have none."""
    stated = [getattr(source, "weight", None) for source in sources]
    weights = [weight for weight in stated if weight is not None]
    if weights and len(weights) != len(sources):
        source = sources[stated.index(None)].source
        raise MmclError(f"{source}: it has no weight and other sources have; give weights to all of them or to none")
    return weights
