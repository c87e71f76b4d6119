"""A matrix whose rows and columns are sharded over processes: each process computes its own rows against the columns of
all, and partial results for columns are reduced to the rank that owns the columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor

from mmcl.runtime.distributed import all_gather_ints, gather_rows, rank, world_size

MapShard = Callable[[list[Tensor]], Tensor | None]
Combine = Callable[[Tensor, Tensor], Tensor]


class LocalExchange:
    """One process, which has all columns.

    Attributes:
        row_offset: number, in the global batch, of this process's first row.
        global_rows: number of rows of the global batch.
        peer_sizes: the ``sizes`` of every process, in the order of ranks.
    """

    row_offset = 0

    def __init__(self, rows: int, sizes: Sequence[int] = ()) -> None:
        self.global_rows, self.peer_sizes = rows, [list(sizes)]

    def map_shards(
        self, columns: Sequence[Tensor], counts: list[int], work: MapShard, combine: Combine = torch.add
    ) -> Tensor | None:
        """Call ``work`` with shards of columns until all columns of the global batch have been passed.

        Args:
            columns: tensors of this process, each with one entry for each of its columns.
            counts: number of columns of every process.
            work: takes the same tensors of some of the columns, and returns a tensor with one entry for each of these
                columns, or always None.
            combine: reduces the results of two processes for the same columns.

        Returns:
            The reduced results for this process's columns; None if ``work`` returns None.
        """
        return work(list(columns))

    def all_reduce_sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, on each of them; its gradient is W times that of this process's value."""
        return value

    def all_reduce_max(self, values: Tensor) -> Tensor:
        """The elementwise maximum over all processes."""
        return values


class GatherExchange(LocalExchange):
    """All columns are gathered on every process: O(N·D) memory for a global batch of N rows."""

    def __init__(self, rows: int, device: torch.device, sizes: Sequence[int] = ()) -> None:
        table = all_gather_ints([rows, *sizes], device)  # one collective for everything
        counts, self.peer_sizes = [numbers[0] for numbers in table], [numbers[1:] for numbers in table]
        self.row_offset, self.global_rows = sum(counts[: rank()]), sum(counts)

    def map_shards(
        self, columns: Sequence[Tensor], counts: list[int], work: MapShard, combine: Combine = torch.add
    ) -> Tensor | None:
        partial = work([gather_rows(tensor, counts) for tensor in columns])
        if partial is None:
            return None
        own = partial.new_empty(len(counts) * counts[rank()], *partial.shape[1:])
        dist.all_to_all_single(own, partial.contiguous(), [counts[rank()]] * len(counts), counts)
        return reduce(combine, own.unflatten(0, (len(counts), counts[rank()])).unbind())

    def all_reduce_sum(self, value: Tensor) -> Tensor:
        return _AllReduceSum.apply(value)

    def all_reduce_max(self, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return values


class RingExchange(GatherExchange):
    """Columns are passed around from process to process (as in Ring Attention, Liu et al. 2023, arXiv:2310.01889): none
    holds those of more than two, and the next are transferred during the computation.

    Partial results are sent to the owner of their columns directly. That is as many bytes as sending them around with
    the columns, and no process waits for the sum of another before it can pass on its own.
    """

    def map_shards(
        self, columns: Sequence[Tensor], counts: list[int], work: MapShard, combine: Combine = torch.add
    ) -> Tensor | None:
        world, me = len(counts), rank()
        shard = [tensor.contiguous() for tensor in columns]
        accumulated: Tensor | None = None
        pending: _Transfer | None = None  # of partial results, to and from the owners of columns
        for step in range(world):
            incoming: _Transfer | None = None
            if step < world - 1:
                shapes = [(counts[(me - step - 1) % world], *tensor.shape[1:]) for tensor in shard]
                buffers = [tensor.new_empty(shape) for tensor, shape in zip(shard, shapes, strict=True)]
                incoming = _Transfer(shard, (me + 1) % world, buffers, (me - 1) % world)
            partial = work(shard)
            if pending is not None and accumulated is not None:
                accumulated = combine(accumulated, pending.wait()[0])
            if step == 0:
                accumulated = partial
            elif partial is not None and accumulated is not None:
                buffer = torch.empty_like(accumulated)
                pending = _Transfer([partial], (me - step) % world, [buffer], (me + step) % world)
            if incoming is not None:
                shard = incoming.wait()
        return accumulated if pending is None or accumulated is None else combine(accumulated, pending.wait()[0])


class _Transfer:
    """Tensors sent to one process while as many are received from another."""

    def __init__(self, tensors: list[Tensor], target: int, buffers: list[Tensor], source: int) -> None:
        # Kept as attributes: they are read until the transfer is complete.
        self.tensors, self.buffers = [tensor.contiguous() for tensor in tensors], buffers
        operations = [dist.P2POp(dist.isend, tensor, target) for tensor in self.tensors if tensor.numel()]
        operations += [dist.P2POp(dist.irecv, tensor, source) for tensor in self.buffers if tensor.numel()]
        self.requests = dist.batch_isend_irecv(operations) if operations else []

    def wait(self) -> list[Tensor]:
        """The tensors received, once all are complete."""
        for request in self.requests:
            request.wait()
        return self.buffers


class _AllReduceSum(torch.autograd.Function):
    """Sum over the processes.

    Data parallelism *averages* gradients of parameters over W processes, while the gradient of the global batch is the
    *sum* of the contributions of each process's rows, columns and copy of a temperature; hence the factor W.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, value: Tensor) -> Tensor:
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        return grads[0] * world_size()


def make_exchange(across: str | None, rows: int, device: torch.device, sizes: Sequence[int] = ()) -> LocalExchange:
    """The exchange of a process with ``rows`` rows. A collective call, unless ``across`` is None.

    Args:
        across: ``gather``, ``ring``, or None if this process has the global batch.
        rows: of this process; their number may differ between processes.
        device: of the tensors to be exchanged.
        sizes: numbers that all processes are to have of each other, equally many on each.

    Raises:
        ValueError: ``across`` is something else.
    """
    if across not in (None, "gather", "ring"):
        raise ValueError(f"across must be 'gather', 'ring' or None, not {across!r}")
    if across is None or world_size() == 1:
        return LocalExchange(rows, sizes)
    return (RingExchange if across == "ring" else GatherExchange)(rows, device, sizes)
