"""A matrix whose columns lie on several processes: its columns come to the rows, and what the rows found goes home.

Every process holds the rows and the columns of its own part of a batch, and computes its rows against all columns. What
that gives for somebody else's columns (sums over rows, gradients) is owed to the column's owner, who adds it up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor

from mmcl.runtime.distributed import all_gather_ints, gather_rows, rank, world_size

Work = Callable[[list[Tensor]], Tensor | None]
Combine = Callable[[Tensor, Tensor], Tensor]


class Alone:
    """One process, which has all columns.

    Attributes:
        first: number, in the whole batch, of this process's first row.
        rows: number of rows of the whole batch.
        told: what each process told the others when they met.
    """

    first = 0

    def __init__(self, rows: int, told: Sequence[int] = ()) -> None:
        self.rows, self.told = rows, [list(told)]

    def tour(
        self, columns: Sequence[Tensor], counts: list[int], work: Work, combine: Combine = torch.add
    ) -> Tensor | None:
        """Do ``work`` for all columns of the batch.

        Args:
            columns: tensors of this process, each with one entry for each of its columns in front.
            counts: every process's number of columns, which they told each other when they met: to ask is a wait.
            work: called with the same tensors of some of the batch's columns, until all have had their turn. Returns
                one entry for each of the columns, or None if there is nothing to bring home.
            combine: how what different rows found for the same columns becomes one.

        Returns:
            What all processes found for this process's columns.
        """
        return work(list(columns))

    def total(self, value: Tensor) -> Tensor:
        """The sum of the processes' values, on all of them; the gradient is W times this process's share."""
        return value

    def largest(self, values: Tensor) -> Tensor:
        """The largest of the processes' values, element by element."""
        return values


class Gather(Alone):
    """All columns come to every process at once: O(N·D) memory for N rows of the whole batch."""

    def __init__(self, rows: int, device: torch.device, told: Sequence[int] = ()) -> None:
        table = all_gather_ints([rows, *told], device)  # in one exchange, for each is a wait
        counts, self.told = [numbers[0] for numbers in table], [numbers[1:] for numbers in table]
        self.first, self.rows = sum(counts[: rank()]), sum(counts)

    def tour(
        self, columns: Sequence[Tensor], counts: list[int], work: Work, combine: Combine = torch.add
    ) -> Tensor | None:
        found = work([gather_rows(tensor, counts) for tensor in columns])
        if found is None:
            return None
        mine = found.new_empty(len(counts) * counts[rank()], *found.shape[1:])
        dist.all_to_all_single(mine, found.contiguous(), [counts[rank()]] * len(counts), counts)
        return reduce(combine, mine.unflatten(0, (len(counts), counts[rank()])).unbind())

    def total(self, value: Tensor) -> Tensor:
        return _Total.apply(value)

    def largest(self, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return values


class Ring(Gather):
    """Columns go around from process to process (as in Ring Attention, Liu et al. 2023, arXiv:2310.01889): none ever
    holds those of more than two, and the next are under way while work is done on these.

    What was found for them does not travel on with them, but straight home: as many bytes, and no process waits for
    another's sum before it can pass on its own.
    """

    def tour(
        self, columns: Sequence[Tensor], counts: list[int], work: Work, combine: Combine = torch.add
    ) -> Tensor | None:
        world, me = len(counts), rank()
        held = [tensor.contiguous() for tensor in columns]
        home: Tensor | None = None
        debt: _Moves | None = None  # what is on its way to and from the columns' owners
        for step in range(world):
            coming: _Moves | None = None
            if step < world - 1:
                shapes = [(counts[(me - step - 1) % world], *tensor.shape[1:]) for tensor in held]
                room = [tensor.new_empty(shape) for tensor, shape in zip(held, shapes, strict=True)]
                coming = _Moves(held, (me + 1) % world, room, (me - 1) % world)
            found = work(held)
            if debt is not None and home is not None:
                home = combine(home, debt.arrived()[0])
            if step == 0:
                home = found
            elif found is not None and home is not None:
                debt = _Moves([found], (me - step) % world, [torch.empty_like(home)], (me + step) % world)
            if coming is not None:
                held = coming.arrived()
        return home if debt is None or home is None else combine(home, debt.arrived()[0])


class _Moves:
    """Tensors on their way to one process, and others of the same number from another."""

    def __init__(self, ours: list[Tensor], to: int, room: list[Tensor], source: int) -> None:
        # Kept until all have arrived, for they are read while the process does something else.
        self.ours, self.room = [tensor.contiguous() for tensor in ours], room
        moves = [dist.P2POp(dist.isend, tensor, to) for tensor in self.ours if tensor.numel()]
        moves += [dist.P2POp(dist.irecv, tensor, source) for tensor in self.room if tensor.numel()]
        self.under_way = dist.batch_isend_irecv(moves) if moves else []

    def arrived(self) -> list[Tensor]:
        """Wait for all of them; those that came."""
        for move in self.under_way:
            move.wait()
        return self.room


class _Total(torch.autograd.Function):
    """Sum over the processes.

    Data parallelism *averages* parameter gradients over W processes, while the gradient of the whole batch is the *sum*
    of what each process's rows, columns and copy of a temperature contribute; hence the factor W here.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, value: Tensor) -> Tensor:
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        return grads[0] * world_size()


def exchange(across: str | None, rows: int, device: torch.device, told: Sequence[int] = ()) -> Alone:
    """How a process with ``rows`` rows meets the others' columns.

    Args:
        across: ``gather``, ``ring``, or None if what this process holds is the whole batch.
        rows: of this process; the processes' numbers may differ.
        device: of the tensors that will be sent.
        told: numbers that every process is to know of every other, as many on each.

    Raises:
        ValueError: ``across`` is something else.
    """
    if across not in (None, "gather", "ring"):
        raise ValueError(f"across must be 'gather', 'ring' or None, not {across!r}")
    if across is None or world_size() == 1:
        return Alone(rows, told)
    return Ring(rows, device, told) if across == "ring" else Gather(rows, device, told)
