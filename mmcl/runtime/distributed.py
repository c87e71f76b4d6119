"""Collectives over the default process group; each returns its input where there is only one process."""

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

BARRIER_TIMEOUT = timedelta(days=30)
# Newer releases of PyTorch have it by another name, and warn of this one.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def barrier() -> None:
    """Wait for all processes, up to 30 days; raise an error as soon as one of them has ended.

    Every other collective fails after the timeout of the default group. Work of one process alone (decoding,
    evaluating, writing) therefore belongs before a barrier.
    """
    if world_size() > 1:
        dist.barrier(_barrier_group(dist.group.WORLD))


@cache
def _barrier_group(of: dist.ProcessGroup) -> dist.ProcessGroup:
    """The same processes over gloo, whose connections close when a process ends. NCCL would wait for the timeout."""
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=BARRIER_TIMEOUT))


@contextmanager
def translate_comm_errors(cure: Callable[[], str]) -> Iterator[None]:
    """Within, a collective that fails because a process has ended or does not answer raises ``MmclError``.

    Args:
        cure: returns the end of the message: what to do.
    """
    try:
        yield
    except RuntimeError as error:  # torch has no type of its own for gloo's errors
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
    """The number of rows of every process, in the order of ranks."""
    return [counts[0] for counts in all_gather_ints([count], device)]


def all_gather_ints(numbers: Sequence[int], device: torch.device) -> list[list[int]]:
    """The numbers of every process, equally many on each, in the order of ranks."""
    if world_size() == 1:  # without waiting for a device
        return [list(numbers)]
    table = torch.zeros(world_size(), len(numbers), dtype=torch.int64, device=device)
    table[rank()] = torch.tensor(numbers, dtype=torch.int64, device=device)
    dist.all_reduce(table)
    return table.tolist()


class _GatherRows(torch.autograd.Function):
    """Concatenate the shards of all processes.

    Every process computes the same loss of the same global batch from the result, so the gradient of its own shard is
    a slice of the gradient of the batch and needs no communication. Data parallelism then *averages* gradients of
    parameters over the W processes, while the gradient of the global batch is the *sum* of the contributions of all
    shards; hence the factor W. Parameters of the loss itself (a temperature) have the same gradient on every process,
    which the average leaves as it is.

    A loss that is computed in parts, ``across`` processes, follows the same convention: each process's contribution to
    a gradient, of its embeddings or of a temperature, is W times its own part. So the two can be added.
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
    """All-gather: (n, …) on each of W processes becomes (Σn, …), in the order of ranks; gradient flows to this
    process's rows.

    Args:
        shard: this process's rows; their number may differ between processes, or be 0.
        counts: the result of :func:`row_counts`, if it is known already.
    """
    if world_size() == 1:
        return shard
    counts = row_counts(len(shard), shard.device) if counts is None else counts
    return _GatherRows.apply(shard, counts) if max(counts) else shard


def gather_views(views: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """:func:`gather_rows` of each tensor; all processes have the same names."""
    if world_size() == 1 or not views:
        return dict(views)
    device = next(iter(views.values())).device
    lengths = torch.tensor([[len(view) for view in views.values()]], device=device)
    counts = _GatherRows.apply(lengths, [1] * world_size()).T.tolist()  # of all in one collective
    return {name: gather_rows(view, of) for (name, view), of in zip(views.items(), counts, strict=True)}


def gather_lists(items: list[str]) -> list[str]:
    """The items of all processes, in the order of ranks."""
    if world_size() == 1:
        return items
    lists: list[list[str]] = [[] for _ in range(world_size())]
    dist.all_gather_object(lists, items)
    return [item for found in lists for item in found]


def broadcast_bool(value: bool, device: torch.device) -> bool:
    """The value of process 0, on every process."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, device=device)
    dist.broadcast(tensor, 0)
    return bool(tensor.item())


@torch.no_grad()
def broadcast_buffers(module: nn.Module) -> None:
    """Overwrite the buffers of all processes with those of process 0, as running statistics depend on a process's own
    rows.

    FSDP never synchronises buffers. DDP does so at the beginning of a step, so that they differ at its end.
    """
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


@torch.no_grad()
def all_reduce_mean(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor, in place, by its mean over all processes."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= world_size()


def all_reduce_max(value: float, device: torch.device) -> float:
    """The maximum over all processes."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, dtype=widest(device), device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.item()
