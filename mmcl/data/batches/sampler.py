"""Which rows form which batch: a function of seed and epoch alone, so that a run can go on in the middle of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mmcl.data.batches.distinct import Identities, distinct_batches


class Draw(NamedTuple):
    """One process's share of a global batch.

    Attributes:
        number: of the global batch, counted through the epochs.
        rows: (n,) int64.
        passes: (n,) int64, how often each row's source had been gone through before.
    """

    number: int
    rows: np.ndarray
    passes: np.ndarray


class Sampler:
    """Shuffled batches of the rows of one or several sources.

    Every epoch has the same number of rows of each source. A source hands them out pass by pass: all of its rows in a
    random order, then all of them in another, so that none comes again before every other one has come. An epoch that
    takes 3 rows of a source of 10 goes on in the next epoch with the fourth, and one that takes 25 goes through it two
    and a half times. What an epoch has is then shuffled as a whole.

    Every process computes the same order and takes its own slice of each global batch, so the rows that meet in a batch
    do not depend on the number of processes. An incomplete last batch is dropped: its loss would have fewer negatives.

    With ``one_source`` every batch has rows of one source, and the batches of the sources come in a random order. A
    source gives an epoch as many whole batches as its share holds; what is left over comes first in the next epoch.

    With ``identities`` no two rows of a batch share a thing, see
    :func:`~mmcl.data.batches.distinct.distinct_batches`. An epoch
    that goes from one pass to the next may have a row twice, and so too few different ones: gaps that its own rows
    cannot fill take some that come next.

    With ``labels`` an epoch's rows of a label stand together, in runs of about equal length that come in a random
    order, see :func:`in_runs`. A batch begins where the one before ends, which may part a run.

    Args:
        positions: for each source (N,) rows to draw from, no row in two of them.
        batch_size: rows of a global batch; a multiple of ``world``.
        seed: of the order.
        rank: number of this process.
        world: number of processes.
        counts: rows of each source in an epoch; all of them if absent.
        one_source: whether a batch has rows of one source only.
        identities: what the rows have, no two of a batch the same.
        labels: (rows,) of all rows, as they are numbered.
        per_label: rows of a run, at most; as many as there are if None.

    Attributes:
        counts: rows of each source in an epoch.

    Raises:
        ValueError: no whole batch fits, or not one of each source though it has to; or ``world`` does not divide it.
    """

    def __init__(
        self,
        positions: Sequence[np.ndarray],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        *,
        counts: Sequence[int] | None = None,
        one_source: bool = False,
        identities: Identities | None = None,
        labels: np.ndarray | None = None,
        per_label: int | None = None,
    ) -> None:
        self.positions = list(positions)
        self.counts = [len(rows) for rows in positions] if counts is None else list(counts)
        if batch_size % world:
            raise ValueError(f"a batch of {batch_size} rows cannot be divided evenly over {world} processes")
        if sum(self.counts) < batch_size:
            raise ValueError(f"{sum(self.counts)} rows do not fill a batch of {batch_size}")
        if one_source:
            short = [number for number, count in enumerate(self.counts) if count < batch_size]
            if short:
                raise ValueError(
                    f"source {short[0] + 1} gives an epoch {self.counts[short[0]]} rows, which do not fill a batch of "
                    f"{batch_size} of its own"
                )
            self.counts = [count // batch_size * batch_size for count in self.counts]
        self.batch_size = batch_size
        self.one_source = one_source
        self.identities = identities
        self.labels, self.per_label = labels, per_label
        self.seed = seed
        self.rank = rank
        self.world = world

    def __len__(self) -> int:
        """Batches an epoch."""
        return sum(self.counts) // self.batch_size

    def order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """All rows of ``epoch`` in their order, and the pass of its source that each belongs to.

        Raises:
            ValueError: batches cannot be filled with rows of which no two share a thing.
        """
        rows, passes, _ = self._order(epoch)
        return rows, passes

    def repeated(self, epoch: int) -> int:
        """How many rows of ``epoch`` fit into no batch, so that others come a second time, or before their turn."""
        return self._order(epoch)[2]

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray, int]:
        """What :meth:`order` and :meth:`repeated` give."""
        parts = [np.split(self._part(n, epoch), [count], axis=1) for n, count in enumerate(self.counts)]
        if not self.one_source:
            shuffled = np.random.default_rng([self.seed, epoch]).permutation(sum(self.counts))
            drawn, rest = (np.concatenate(columns, axis=1) for columns in zip(*parts, strict=True))
            drawn = self._together(drawn[:, shuffled], epoch, 0)
            (rows, passes), repeated = self._distinct(drawn, rest)
            return rows, passes, repeated
        batches, total = [], 0
        for source, (drawn, rest) in enumerate(parts):
            # Four numbers keep this generator apart from those of epochs and passes.
            order = np.random.default_rng([self.seed, epoch, 0, 1 + source]).permutation(drawn.shape[1])
            drawn, repeated = self._distinct(self._together(drawn[:, order], epoch, 1 + source), rest)
            batches.append(drawn.reshape(2, -1, self.batch_size))
            total += repeated
        drawn = np.concatenate(batches, axis=1)
        drawn = drawn[:, np.random.default_rng([self.seed, epoch]).permutation(drawn.shape[1])]
        rows, passes = drawn.reshape(2, -1)
        return rows, passes, total

    def _together(self, drawn: np.ndarray, epoch: int, source: int) -> np.ndarray:
        """The rows and passes drawn, those of a label in runs, if asked for."""
        if self.labels is None:
            return drawn
        random = np.random.default_rng([self.seed, epoch, 0, 0, source])
        return drawn[:, in_runs(self.labels[drawn[0]], self.per_label, random)]

    def _distinct(self, drawn: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, int]:
        """The rows and passes drawn, batch by batch without two that share a thing; ``rest`` fills what they cannot."""
        if self.identities is None:
            return drawn, 0
        places, repeated = distinct_batches(drawn[0], self.batch_size, self.identities, rest[0])
        return np.concatenate([drawn, rest], axis=1)[:, places.reshape(-1)], repeated

    def batches(self, start: int, stop: int) -> Iterator[Draw]:
        """This process's share of the batches from ``start`` up to ``stop``, numbered through the epochs."""
        share, ordered = self.batch_size // self.world, -1
        for number in range(start, stop):
            epoch, within = divmod(number, len(self))
            if epoch != ordered:
                (rows, passes), ordered = self.order(epoch), epoch
            first = within * self.batch_size + self.rank * share
            yield Draw(number, rows[first : first + share], passes[first : first + share])

    def _part(self, source: int, epoch: int) -> np.ndarray:
        """(2, n): what a source gives to an epoch, which is rows ``epoch * count`` up to ``(epoch + 1) * count`` of its
        passes, and, with identities, the rest of the pass that these end in; and the pass of each."""
        positions, count = self.positions[source], self.counts[source]
        if count == len(positions):  # a whole pass, which the epoch shuffles
            return np.stack([positions, np.full(count, epoch)])
        stop = (epoch + 1) * count
        if self.identities is not None:
            stop = -(-stop // len(positions)) * len(positions)
        numbers = np.arange(epoch * count, stop)
        passes, within = np.divmod(numbers, len(positions))
        rows = np.empty(len(numbers), dtype=np.int64)
        for turn in np.unique(passes):
            # A third number keeps the generator apart from that of the epochs.
            order = np.random.default_rng([self.seed, turn, 1 + source]).permutation(positions)
            rows[passes == turn] = order[within[passes == turn]]
        return np.stack([rows, passes])


def in_runs(labels: np.ndarray, longest: int | None, random: np.random.Generator) -> np.ndarray:
    """(N,) places of ``labels`` (N,), those of a label in runs of at most ``longest``, in a random order of runs.

    A label of 5 rows has runs of 3 and 2 where 4 is the longest: a row by itself would have no positive. Within a run,
    and from run to run of a label, places ascend.
    """
    order = np.argsort(labels, kind="stable")  # label by label
    _, first, count = np.unique(labels[order], return_index=True, return_counts=True)
    runs = np.ones_like(count) if longest is None else -(-count // longest)
    code = np.repeat(np.arange(len(count)), count)
    within = np.arange(len(order)) - first[code]
    run = (np.cumsum(runs) - runs)[code] + within * runs[code] // count[code]
    turn = random.permutation(int(runs.sum()))
    return order[np.argsort(turn[run], kind="stable")]


def epoch_counts(rows: Sequence[int], samples: Sequence[int | None], weights: Sequence[float | None]) -> list[int]:
    """How many rows of each source an epoch has.

    Args:
        rows: of each source.
        samples: rows of each source that count as an epoch; all of them where None.
        weights: relative shares of the sources in an epoch, whose length stays the sum of the samples; None for all:
            every source gives its samples.

    Raises:
        ValueError: some have a weight and some have none, or a share is so small that it gives no row at all.
    """
    lengths = [own if wanted is None else wanted for own, wanted in zip(rows, samples, strict=True)]
    given = [weight for weight in weights if weight is not None]
    if not given:
        return lengths
    if len(given) < len(weights):
        raise ValueError("some sources have a weight and some have none; give one to all, or to none")
    shares = np.asarray(given) / sum(given) * sum(lengths)
    counts = np.floor(shares).astype(np.int64)
    largest = np.argsort(counts - shares, kind="stable")  # largest remainders first
    counts[largest[: sum(lengths) - counts.sum()]] += 1
    if not counts.all():
        place = int(np.argmin(counts))
        raise ValueError(f"the weight {given[place]:g} gives no row among the {sum(lengths)} of an epoch; raise it")
    return [int(count) for count in counts]
