"""The order in which tar shards are read: a function of seed, epoch and worker, that can go on in the middle."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np

from mmcl.data.sources.tar.names import shard_name
from mmcl.data.sources.tar.read import Reachable, Sample, ShardError, read_shard
from mmcl.runtime.errors import MmclError

T = TypeVar("T")
_DEAL, _BLOCK, _MIX, _BATCH = range(0x5AD0, 0x5AD4)  # unlike one another and what else is drawn with the run's seed
_DRAWS = 1024


class SampleError(Exception):
    """A sample that cannot be used: which of its roles, and why."""

    def __init__(self, role: str, reason: str) -> None:
        super().__init__(f"{role}: {reason}")
        self.role = role
        self.reason = reason


@dataclass(frozen=True)
class Order:
    """How one worker reads.

    Attributes:
        seed: of the run.
        slot: number of the worker among those of all processes.
        slots: how many there are.
        block: samples that are shuffled among each other.
    """

    seed: int
    slot: int = 0
    slots: int = 1
    block: int = 5000

    def deal(self, shards: Sequence[str], epoch: int, pool: int = 0) -> list[str]:
        """This worker's share of ``shards``, in the order of ``epoch``. The shares of all workers are disjoint."""
        order = np.random.default_rng([self.seed, _DEAL, pool, epoch]).permutation(len(shards))
        return [shards[number] for number in order[self.slot :: self.slots]]

    def shuffled(self, samples: list[Sample], epoch: int, block: int, pool: int = 0) -> list[Sample]:
        """A block of samples in the order of ``epoch``."""
        rng = np.random.default_rng([self.seed, _BLOCK, pool, epoch, self.slot, block])
        return [samples[number] for number in rng.permutation(len(samples))]


@dataclass
class _Cursor:
    """Where an iterator stands: a block of samples, by the shard and sample it begins with, and how many are taken."""

    epoch: int = 0
    block: int = 0
    shard: int = 0
    sample: int = 0
    taken: int = 0


class ShardIterator(Generic[T]):
    """Every sample of this worker's share of some shards, once an epoch, epoch after epoch without end.

    The samples of the share's shards, one after the other, are cut into blocks, and each block is shuffled. Nothing
    lingers from block to block: to go on in the middle, at most one block is read again (of local shards, its headers).

    Args:
        shards: all of them, of all workers.
        load: what to make of a sample; ``SampleError`` if it cannot be used.
        order: the worker's.
        pool: number of these shards among those of a mixture.
        wanted: extensions that ``load`` reads.
        fail: raise ``MmclError`` for a sample or a shard that cannot be used, instead of skipping it.
        cursor: where to go on, as ``cursor`` gave it.

    Attributes:
        problems: what was skipped, each with id, role and reason; whoever takes them empties the list.
    """

    def __init__(
        self,
        shards: Sequence[str],
        load: Callable[[Sample], T],
        order: Order,
        *,
        pool: int = 0,
        wanted: Collection[str] | None = None,
        fail: bool = False,
        cursor: dict[str, int] | None = None,
    ) -> None:
        self.shards = shards
        self.load = load
        self.order = order
        self.pool = pool
        self.wanted = wanted
        self.fail = fail
        self.problems: list[dict[str, str]] = []
        self._cursor = _Cursor(**(cursor or {}))
        self._block: list[Sample | None] = []
        self._samples: Iterator[tuple[int, int, Sample]] | None = None  # of this epoch, not yet in a block
        self._ahead: tuple[int, int, Sample] | None = None  # the first of them: where the next block begins
        self._from_start = self._cursor == _Cursor(epoch=self._cursor.epoch)
        self._useful = False
        self._first_problem = ""
        self._reachable = Reachable()

    @property
    def cursor(self) -> dict[str, int]:
        """Where the iterator stands, for JSON."""
        return asdict(self._cursor)

    def next(self) -> tuple[Sample, T, int]:
        """The next sample that can be used, what was made of it, and its epoch.

        Raises:
            MmclError: a whole epoch has no such sample; or something cannot be used and ``fail`` is set.
        """
        while True:
            while self._cursor.taken >= len(self._block):
                self._fill()
            sample, self._block[self._cursor.taken] = self._block[self._cursor.taken], None
            assert sample is not None  # each is taken once
            found = self._try(sample)
            self._cursor.taken += 1
            if self._cursor.taken == len(self._block):
                self._end_block()
            if found is not None:
                return found

    def _try(self, sample: Sample) -> tuple[Sample, T, int] | None:
        try:
            loaded = self.load(sample)
        except SampleError as error:
            self._skip(sample.name, error.role, error.reason)
            return None
        except ShardError as error:
            self._skip(sample.name, "shard", error.reason)
            return None
        self._useful = True
        return sample, loaded, self._cursor.epoch

    def _fill(self) -> None:
        """Read the block that begins at the cursor, or end the epoch if there is none."""
        at = self._cursor
        known = len(self.problems)
        if self._samples is None:
            self._samples = self._read(at.epoch, at.shard, at.sample)
            self._ahead = next(self._samples, None)
        block: list[Sample] = []
        while self._ahead is not None and len(block) < self.order.block:
            block.append(self._ahead[2])
            self._ahead = next(self._samples, None)
        if at.taken:
            del self.problems[known:]  # the batch that began this block has them
        self._block = list(self.order.shuffled(block, at.epoch, at.block, self.pool))
        self._block[: at.taken] = [None] * at.taken
        if not block:
            self._end_epoch()

    def _end_block(self) -> None:
        self._block = []
        if self._ahead is None:
            self._end_epoch()
        else:
            shard, sample, _ = self._ahead
            self._cursor = _Cursor(self._cursor.epoch, self._cursor.block + 1, shard, sample)

    def _end_epoch(self) -> None:
        if self._from_start and not self._useful:
            raise MmclError(
                f"{shard_name(self.shards[0])} and the other shards ({len(self.shards)} in all): a pass gave no "
                f"sample that can be used{self._first_problem and f'; the first problem was {self._first_problem}'}"
                + ("" if ": shard: " in self._first_problem else "; name the extensions to read in data.columns")
            )
        self._cursor = _Cursor(self._cursor.epoch + 1)
        self._samples = None
        self._from_start, self._useful = True, False

    def _read(self, epoch: int, first: int, skip: int) -> Iterator[tuple[int, int, Sample]]:
        """Shard and number of each sample of the epoch, from sample ``skip`` of shard ``first`` on."""
        shards = self.order.deal(self.shards, epoch, self.pool)
        for number in range(first, len(shards)):
            start = skip if number == first else 0
            try:
                samples = enumerate(read_shard(shards[number], self.wanted))
                for position, sample in islice(samples, start, None):
                    self._reachable.read()
                    yield number, position, sample
            except ShardError as error:
                self._reachable.failed(shards[number], error)
                self._skip(error.name, "shard", error.reason)

    def _skip(self, name: str, role: str, reason: str) -> None:
        if self.fail:
            raise MmclError(f"{name}: {role}: {reason}; mend it, or set data.on_error to skip")
        self._first_problem = self._first_problem or f"{name}: {role}: {reason}"
        self.problems.append({"id": name, "role": role, "reason": reason})


class Mixture(Generic[T]):
    """Several iterators as one: each next sample comes from one drawn by weight, by its number in the stream alone.

    Args:
        iterators: one for each pool of shards.
        weights: their shares of the samples that can be used, in any unit.
        order: the worker's.
        drawn: samples given so far.
    """

    def __init__(
        self, iterators: Sequence[ShardIterator[T]], weights: Sequence[float], order: Order, drawn: int = 0
    ) -> None:
        self.iterators = iterators
        self.order = order
        self.drawn = drawn
        self._ends = np.cumsum(weights)[:-1] / np.sum(weights)
        self._choices: tuple[int, np.ndarray] = (-1, self._ends)  # number of a block of draws, and its iterators

    @property
    def position(self) -> dict[str, Any]:
        """Where the stream stands, for JSON."""
        return {"drawn": self.drawn, "walks": [iterator.cursor for iterator in self.iterators]}

    def pool_of(self, batch: int) -> int:
        """The pool of a batch that has samples of one alone: drawn by weight, by the number of the batch alone, so that
        it is the same for all workers."""
        draw = np.random.default_rng([self.order.seed, _BATCH, batch]).random()
        return int(np.searchsorted(self._ends, draw, side="right"))

    def next(self, pool: int | None = None) -> tuple[Sample, T, int]:
        """As :meth:`ShardIterator.next`, of the given pool; by default of one that is drawn."""
        if pool is not None:
            self.drawn += 1
            return self.iterators[pool].next()
        block, within = divmod(self.drawn, _DRAWS)
        if self._choices[0] != block:
            draws = np.random.default_rng([self.order.seed, _MIX, self.order.slot, block]).random(_DRAWS)
            self._choices = block, np.searchsorted(self._ends, draws, side="right")
        self.drawn += 1
        return self.iterators[int(self._choices[1][within])].next()

    def take_problems(self) -> list[dict[str, str]]:
        """What was skipped since this was last asked."""
        taken = [problem for iterator in self.iterators for problem in iterator.problems]
        for iterator in self.iterators:
            iterator.problems.clear()
        return taken
