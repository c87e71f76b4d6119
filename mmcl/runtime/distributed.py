"""What processes that were launched together tell each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Number of processes; 1 where none were launched together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def barrier() -> None:
    """Wait for the other processes, if there are any."""
    if world_size() > 1:
        dist.barrier()


class _GatherRows(torch.autograd.Function):
    """Concatenate equal shards over the processes.

    Every process then computes the same loss of the same whole batch, so the gradient of its own shard needs no
    communication: it is its slice of the whole gradient. Data parallelism later *averages* parameter gradients over
    W processes, though the whole gradient is the *sum* of the shards' contributions; hence the factor W here.
    Parameters of the loss itself (a temperature) get the whole gradient everywhere, and averaging leaves it right.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, shard: Tensor) -> Tensor:
        shards = [torch.empty_like(shard) for _ in range(world_size())]
        dist.all_gather(shards, shard.contiguous())
        return torch.cat(shards)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        world = world_size()
        return grads[0].chunk(world)[rank()] * world


def gather_rows(shard: Tensor) -> Tensor:
    """(n, …) of each of W processes becomes (W·n, …), in the order of ranks; gradient flows to this process's rows.

    All processes must hold the same number of rows. With one process this is the identity.
    """
    if world_size() == 1:
        return shard
    return _GatherRows.apply(shard)


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
    """Give all processes the buffers of process 0: running statistics are each process's own in training."""
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
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.item()
