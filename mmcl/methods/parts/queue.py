"""A queue of former embeddings: negatives by the thousand at the price of a matrix product."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mmcl.config.section import Section
from mmcl.methods.parts.state import MethodState
from mmcl.runtime.errors import MmclError


class QueueConfig(Section):
    """Embeddings of former batches as more negatives, which cost a matrix product and no tower; a momentum copy, if
    there is one, costs the towers' memory once more and a pass through them, without gradient, for the keys."""

    size: int = Field(default=16384, ge=1)
    """The newest rows so many are kept, over all devices."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Decay of a moving copy of the towers, such as 0.999, which then embeds all keys, those of the batch as well
    (MoCo, He et al. 2020, arXiv:1911.05722). If null, the queue holds what the towers themselves made of former batches
    (XBM, Wang et al. 2020, arXiv:1912.06798)."""
    start: int = Field(default=0, ge=0)
    """Optimizer steps before former rows count. Without momentum, embeddings of new towers age too fast at first."""


class MemoryQueue(MethodState):
    """The newest rows of former batches, first in, first out: the dictionary of MoCo (He et al. 2020,
    arXiv:1911.05722) where a momentum copy computes what is pushed, the cross-batch memory of XBM (Wang et al. 2020,
    arXiv:1912.06798) where the model itself does.

    The identities of the rows stand beside their vectors, so that an item that a queue holds already is no negative of
    itself. Nothing flows back into a queue. Several processes push the same rows, and so hold the same queue.

    Args:
        size: Q, the most rows it holds.
        dims: name to dimension D of each kind of vector that it holds of every row.
        columns: C, the identities of a row.
        start: pushes, one an optimizer step, before which it gives nothing. Vectors drift fastest in the beginning.

    Attributes:
        ids: (Q, C) int64, of which the first ``filled`` rows count.
        pushed: rows so far; on the CPU, as is ``steps``, since shapes depend on them.
        steps: pushes so far.

    Raises:
        ValueError: ``size`` is less than 1.

    >>> queue = MemoryQueue(3, {"text": 2}, columns=1)
    >>> queue.push({"text": torch.ones(2, 2), "ids": torch.tensor([[7], [8]])})
    >>> queue.contents()["ids"].flatten().tolist()
    [7, 8]
    >>> queue.push({"text": torch.ones(2, 2), "ids": torch.tensor([[9], [10]])})
    >>> queue.contents()["ids"].flatten().tolist()
    [10, 8, 9]
    """

    ids: Tensor
    pushed: Tensor
    steps: Tensor

    def __init__(self, size: int, dims: Mapping[str, int], columns: int, start: int = 0) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"a queue holds 1 row or more, not {size}")
        self.size, self.start, self.names = size, start, tuple(dims)
        for name, dim in dims.items():
            self.register_buffer(f"vectors_{name}", torch.zeros(size, dim))
        self.register_buffer("ids", torch.zeros(size, columns, dtype=torch.int64))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MemoryQueue:
        super()._apply(fn, recurse)
        self.pushed, self.steps = self.pushed.cpu(), self.steps.cpu()
        return self

    @property
    def filled(self) -> int:
        """Rows that it holds."""
        return min(int(self.pushed), self.size)

    @property
    def next(self) -> int:
        """Place of the next row, which is that of the oldest once the queue is full."""
        return int(self.pushed) % self.size

    @torch.no_grad()
    def push(self, rows: Mapping[str, Tensor]) -> None:
        """Take in a step's rows, in whose place the oldest go.

        Args:
            rows: name to (N, D) vectors, for every name of ``dims``, and ``ids`` (N, C); of more than Q rows the last.
        """
        ids = rows["ids"]
        kept = slice(max(0, len(ids) - self.size), None)
        places = (torch.arange(len(ids), device=ids.device)[kept] + self.pushed) % self.size
        self.ids[places] = ids[kept]
        for name in self.names:
            vectors = self.get_buffer(f"vectors_{name}")
            vectors[places] = rows[name][kept].to(vectors.dtype)
        self.pushed += len(ids)
        self.steps += 1

    @torch.no_grad()
    def fill(self) -> None:
        """Be full and beyond the start, with rows that are nobody's: to measure what the queue costs."""
        self.ids.fill_(-1)
        self.pushed.fill_(self.size)
        self.steps.fill_(self.start)

    def contents(self) -> dict[str, Tensor]:
        """The rows it holds, as they were pushed: name to (F, D), and ``ids`` (F, C); nothing while there are none, or
        before the start. They share memory with the queue, and change with the next push."""
        filled = self.filled
        if filled == 0 or int(self.steps) < self.start:
            return {}
        return {name: self.get_buffer(f"vectors_{name}")[:filled] for name in self.names} | {"ids": self.ids[:filled]}


def require_start(queue: MemoryQueue, steps: int, setting: str) -> None:
    """Raise ``MmclError`` where a run of so many steps ends before the rows of ``queue`` count; ``setting`` says when
    they do."""
    if queue.start >= steps:
        raise MmclError(
            f"{setting}: {queue.start}, but the run has {steps} steps, so that no former rows would count; lower it, "
            "raise training.epochs, or leave the queue out"
        )
