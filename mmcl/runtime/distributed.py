"""What processes that were launched together tell each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmcl.runtime.device import widest
from mmcl.runtime.errors import MmclError

PATIENCE = timedelta(days=30)  # at a barrier
# Newer releases of PyTorch have it by another name, and warn of this one.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


def world_size() -> int:
    """Number of processes; 1 where none were launched together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def barrier() -> None:
    """Wait for the other processes, however long one of them works alone, or finds that it has been lost.

    Every other exchange ends with an error after the timeout of the default group, so what only one process does (to
    decode, to evaluate, to write) belongs before a barrier.
    """
    if world_size() > 1:
        dist.barrier(_patient_group(dist.group.WORLD))


@cache
def _patient_group(of: dist.ProcessGroup) -> dist.ProcessGroup:
    """The same processes over gloo, whose connections close with a process that ends: those who wait for it know at
    once, while NCCL would wait for as long as it is allowed to."""
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=PATIENCE))


@contextmanager
def lost_process_is_told(cure: Callable[[], str]) -> Iterator[None]:
    """Within, an exchange with a process that has ended, or that does not answer in time, raises ``MmclError``.

    Args:
        cure: what to do then, for the end of the message.
    """
    try:
        yield
    except RuntimeError as error:  # torch has no type of its own for what gloo says
        reason = str(error)
        silent = re.search(r"tim(ed|e) ?out", reason, re.IGNORECASE) is not None
        if world_size() == 1 or not (isinstance(error, dist.DistError) or "gloo/transport" in reason):
            raise
        what = "had no answer in time from another one" if silent else "lost the connection to another one"
        why = "it hangs, works alone for longer than training.timeout, or was" if silent else "it failed or was"
        raise MmclError(
            f"process {rank()} of {world_size()} {what}: {why} killed, as for want of memory (its own last lines and "
            f"the system's log tell); {cure()}"
        ) from error


def row_counts(count: int, device: torch.device) -> list[int]:
    """Every process's number of rows, in the order of ranks."""
    return [counts[0] for counts in everyones([count], device)]


def everyones(numbers: Sequence[int], device: torch.device) -> list[list[int]]:
    """Every process's numbers, as many on each, in the order of ranks."""
    table = torch.zeros(world_size(), len(numbers), dtype=torch.int64, device=device)
    table[rank()] = torch.tensor(numbers, dtype=torch.int64, device=device)
    if world_size() > 1:
        dist.all_reduce(table)
    return table.tolist()


class _GatherRows(torch.autograd.Function):
    """Concatenate shards over the processes.

    Every process then computes the same loss of the same whole batch, so the gradient of its own shard needs no
    communication: it is its slice of the whole gradient. Data parallelism later *averages* parameter gradients over
    W processes, though the whole gradient is the *sum* of the shards' contributions; hence the factor W here.
    Parameters of the loss itself (a temperature) get the whole gradient everywhere, and averaging leaves it right.

    A loss that is computed in parts, ``across`` processes, keeps to the same rule from the other side: what a process
    adds to a gradient, to one of its embeddings or of a temperature, is W times its own part. So both may be added.
    """

    @staticmethod
    def forward(ctx: Any, shard: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        longest = max(counts)
        padded = shard.contiguous()
        if len(shard) < longest:  # collectives take equal shapes only
            padded = shard.new_zeros(longest, *shard.shape[1:])
            padded[: len(shard)] = shard
        shards = shard.new_empty(len(counts) * longest, *shard.shape[1:])
        _all_gather(shards, padded)
        if min(counts) == longest:
            return shards
        return torch.cat([rows[:count] for rows, count in zip(shards.split(longest), counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].split(ctx.counts)[rank()] * world_size(), None


def gather_rows(shard: Tensor, counts: list[int] | None = None) -> Tensor:
    """(n, …) of each of W processes becomes (Σn, …), in the order of ranks; gradient flows to this process's rows.

    The processes may hold different numbers of rows, or none. With one process this is the identity.

    Args:
        shard: this process's rows.
        counts: what :func:`row_counts` tells of them, where it is known already.
    """
    if world_size() == 1:
        return shard
    counts = row_counts(len(shard), shard.device) if counts is None else counts
    return _GatherRows.apply(shard, counts) if max(counts) else shard


def gather_views(views: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """:func:`gather_rows` of each, told from each other by names that are the same on all processes."""
    if world_size() == 1 or not views:
        return dict(views)
    device = next(iter(views.values())).device
    lengths = torch.tensor([[len(view) for view in views.values()]], device=device)
    counts = _GatherRows.apply(lengths, [1] * world_size()).T.tolist()  # of all at once: each exchange is a wait
    return {name: gather_rows(view, of) for (name, view), of in zip(views.items(), counts, strict=True)}


def gather_lists(items: list[str]) -> list[str]:
    """The items of all processes, in the order of ranks."""
    if world_size() == 1:
        return items
    lists: list[list[str]] = [[] for _ in range(world_size())]
    dist.all_gather_object(lists, items)
    return [item for found in lists for item in found]


def same_everywhere(value: bool, device: torch.device) -> bool:
    """Process 0's value, on every process."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, device=device)
    dist.broadcast(tensor, 0)
    return bool(tensor.item())


@torch.no_grad()
def same_buffers(module: nn.Module) -> None:
    """Give all processes the buffers of process 0: a process moves running statistics by its own rows.

    Sharding leaves it at that; DistributedDataParallel starts a step with those of process 0, and ends it with others.
    """
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


@torch.no_grad()
def average(tensors: Sequence[Tensor]) -> None:
    """Put the mean over all processes in the place of each tensor; all have the same ones."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= world_size()


def largest(value: float, device: torch.device) -> float:
    """The largest of the processes' values."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, dtype=widest(device), device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.item()
