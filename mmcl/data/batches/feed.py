"""What the training loop needs of its data, whether rows of a table or samples of a stream."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from mmcl.config.data import SourceConfig
from mmcl.config.schema import Config
from mmcl.data.batches.batch import Batch
from mmcl.data.batches.reading import Reading
from mmcl.data.batches.stream_feed import StreamFeed
from mmcl.data.batches.table_feed import TableFeed
from mmcl.data.sources.tar.shards import is_shards
from mmcl.runtime.errors import MmclError


class Feed(Protocol):
    """Batches of one or several sources, in an order that seed and batch number alone decide."""

    @property
    def name(self) -> str:
        """What messages call the data."""

    @property
    def samples(self) -> int:
        """Samples of an epoch."""

    @property
    def fingerprint(self) -> str:
        """Changes when the data do, so that a run is not resumed on others."""

    @property
    def extra_count(self) -> int:
        """Extra items beside a global batch."""

    @property
    def longest_texts(self) -> dict[str, int]:
        """Tokens that a text of each role can have; without the roles whose tower's features are kept."""

    def __len__(self) -> int:
        """Batches of an epoch, at least 1. Raises ``MmclError`` if not one can be filled."""

    def batches(self, start: int, stop: int, position: Any = None) -> Generator[Batch, None, None]:
        """This process's share of the global batches from ``start`` up to ``stop``, numbered through the epochs.

        They are prepared ahead; closing the generator stops everything that does so.

        Args:
            start: number of the first batch.
            stop: number after the last one.
            position: ``Batch.position`` of the last batch taken before ``start``, for a feed that cannot jump.
        """

    def identities(self, role: str) -> np.ndarray:
        """(R,) int64 identities of the first item of a role in every usable row. Raises ``MmclError`` for a stream."""

    def problems(self) -> list[dict[str, str]]:
        """What is known beforehand to be unusable: id, role and reason of each."""

    def names(self, batch: Batch) -> list[str]:
        """What the rows of a batch are called."""


def open_feed(
    sources: Sequence[SourceConfig],
    reading: Reading,
    config: Config,
    scratch: Path | None,
    *,
    augmented: bool,
    device: torch.device,
    show_progress: bool | None = None,
) -> Feed:
    """The feed of ``sources``: all of them tables or folders, or all of them tar shards.

    Args:
        sources: where the samples come from; several are mixed by their weights.
        reading: what of them is read.
        config: of the run.
        scratch: folder for the features of frozen towers and of references; None, or for a stream: their items stay
            inputs, and the towers run in every step.
        augmented: to learn from: samples are changed at random, as the config says, and stand beside what else is
            read: second draws, features of references and extra items.
        device: where frozen towers run, and batches go to.
        show_progress: a bar on stderr; for a terminal if absent.

    Raises:
        MmclError: a source cannot be used, or not with the others.
    """
    streamed = [is_shards(source.source) for source in sources]
    if any(streamed) and not all(streamed):
        table = sources[streamed.index(False)].source
        raise MmclError(f"{table}: tables and tar shards cannot be mixed; write all sources as one or as the other")
    kind: Any = StreamFeed if any(streamed) else TableFeed
    return kind(sources, reading, config, scratch, augmented=augmented, device=device, show_progress=show_progress)
