"""Rows of all processes in one tensor, with gradient."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


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
