"""Fully sharded data parallelism: parameters, gradients and optimizer state split over the processes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mmcl.runtime import distributed


def shard(module: nn.Module, parts: Iterable[nn.Module], device: torch.device) -> None:
    """Split the parameters of ``module`` over the processes (ZeRO stage 3; Rajbhandari et al. 2020, arXiv:1910.02054).

    Args:
        module: its parameters are gathered when it runs, and let go afterwards.
        parts: modules within it that are gathered one at a time, so that the whole never is.
        device: of the parameters.
    """
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # a kernel in channels_last cannot be split by rows
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    for part in parts:
        fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)


def delay_gradients(module: nn.Module, delay: bool) -> None:
    """Whether a backward pass keeps its gradients here instead of reducing them over the processes."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_requires_gradient_sync(not delay, recurse=False)


def reshard(module: nn.Module) -> None:
    """Let go of parameters that a forward pass gathered, where no backward pass follows that would do so."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from its shards; any other as it is. All processes call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """This process's part of ``tensor``, which is the same everywhere, if ``reference`` is in shards."""
    if not isinstance(reference, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(reference.device), reference.device_mesh, reference.placements)


def unshard(module: nn.Module) -> None:
    """Put whole parameters in the place of their shards, for good: for saving. All processes call this together."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                plain = nn.Parameter(parameter.full_tensor().detach(), requires_grad=parameter.requires_grad)
                part.register_parameter(name, plain)
