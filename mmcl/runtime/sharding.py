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
        module: its parameters are gathered for its forward and backward pass, and freed afterwards.
        parts: its submodules that are gathered one at a time, so that the module is never gathered at once.
        device: of the parameters.
    """
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # a kernel in channels_last cannot be split by rows
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    for part in parts:
        fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)


def delay_gradients(module: nn.Module, delay: bool) -> None:
    """Set whether a backward pass accumulates gradients on each process instead of reducing them over all."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_requires_gradient_sync(not delay, recurse=False)


def reshard(module: nn.Module) -> None:
    """Free the parameters gathered by a forward pass that no backward pass follows."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered from all processes, any other as it is. A collective call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """This process's shard of ``tensor``, the same on all processes, if ``reference`` is sharded; else ``tensor``."""
    if not isinstance(reference, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(reference.device), reference.device_mesh, reference.placements)


def unshard(module: nn.Module) -> None:
    """Replace sharded parameters by full ones, in place, for saving. A collective call."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                plain = nn.Parameter(parameter.full_tensor().detach(), requires_grad=parameter.requires_grad)
                part.register_parameter(name, plain)
