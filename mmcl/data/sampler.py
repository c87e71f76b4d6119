"""Which rows form which batch: a function of seed and epoch alone, so that a run can go on in the middle of one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


class Sampler:
    """Shuffled batches of row positions.

    Every process computes the same order and takes its own slice of each global batch, so the rows that meet in a batch
    do not depend on the number of processes. An incomplete last batch is dropped: its loss would have fewer negatives.

    Args:
        positions: (N,) rows to draw from.
        batch_size: rows of a global batch; a multiple of ``world``.
        seed: of the order.
        rank: number of this process.
        world: number of processes.

    Raises:
        ValueError: no whole batch fits, or ``world`` does not divide it.
    """

    def __init__(self, positions: np.ndarray, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        if batch_size % world:
            raise ValueError(f"a batch of {batch_size} rows cannot be divided evenly over {world} processes")
        if len(positions) < batch_size:
            raise ValueError(f"{len(positions)} rows do not fill a batch of {batch_size}")
        self.positions = positions
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world = world

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.positions) // self.batch_size

    def batch(self, epoch: int, number: int, order: np.ndarray | None = None) -> np.ndarray:
        """This process's rows of batch ``number`` of ``epoch``; ``order`` saves computing it again."""
        order = self.order(epoch) if order is None else order
        share = self.batch_size // self.world
        start = number * self.batch_size + self.rank * share
        return order[start : start + share]

    def order(self, epoch: int) -> np.ndarray:
        """All rows, in the order of ``epoch``."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.positions)

    def batches(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """(number, this process's rows) of the batches from ``start`` up to ``stop``, numbered through the epochs."""
        order, ordered = None, -1
        for number in range(start, stop):
            epoch, within = divmod(number, len(self))
            if epoch != ordered:
                order, ordered = self.order(epoch), epoch
            yield number, self.batch(epoch, within, order)
