"""Batch normalisation where a batch does not pass through the towers as a whole, or not just once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmcl.config.training import TrainingConfig
from mmcl.methods import Method
from mmcl.models.embedder import Embedder
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")


def learning_layers(module: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations in ``module`` whose running statistics learn. Those of a head for training have none:
    they see the rows of the loss, however these pass through the towers."""
    return [layer for layer in module.modules() if _learns(layer)]


def _learns(layer: nn.Module) -> TypeGuard[_BatchNorm]:
    return isinstance(layer, _BatchNorm) and layer.training and layer.running_mean is not None


def prepare_batch_norm(method: Method, settings: TrainingConfig, device: torch.device) -> None:
    """Have the layers of the towers as ``training.batch_norm`` says; called before anything refers to them.

    Raises:
        MmclError: statistics are to be shared between processes on something else than CUDA, stay as they are where
            none move, or are those of single rows.
    """
    method.train()
    world, single = distributed.world_size(), None
    if settings.micro_batch == 1:
        single = "training.micro_batch: 1"
    elif settings.batch_size == world:
        single = f"training.batch_size: {world}, a row for each of as many processes"
    if single and settings.batch_norm == "batch" and learning_layers(method):
        raise MmclError(
            f"{single}, but batch normalisation needs several rows for its statistics; raise it, or set "
            "training.batch_norm: frozen for a tower that was trained before"
        )
    if settings.batch_norm == "frozen":
        if not learning_layers(method):
            raise MmclError(
                "training.batch_norm: no batch normalisation learns here whose statistics could be frozen; leave it out"
            )
        for embedder in method.modules():
            if isinstance(embedder, Embedder):
                embedder.keep_in_eval(learning_layers(embedder))
    elif settings.batch_norm == "sync":
        if device.type != "cuda":
            raise MmclError(
                f"training.batch_norm: sync works on CUDA only, and this is {device.type}; set it to batch or frozen"
            )
        _synchronise(method)


def _synchronise(module: nn.Module) -> None:
    from timm.layers import convert_sync_batchnorm  # torch's own does not know timm's layers that activate as well

    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            if _learns(child):  # what is frozen has nothing to share
                setattr(module, name, convert_sync_batchnorm(child))
        else:
            _synchronise(child)


def warn_of_statistics(method: Method, settings: TrainingConfig) -> None:
    """Warn where batch normalisation sees fewer rows than are compared with each other."""
    layers, world, micro = learning_layers(method), distributed.world_size(), settings.micro_batch
    assert micro != "auto", "announced when it has been found"
    rows = settings.batch_size // world
    if method.across == "ring" and any(isinstance(layer, _BatchNorm) for layer in method.heads.modules()):
        log.warning(
            "training.exchange: ring: the heads' batch normalisation takes the statistics of the %d rows of one "
            "process, instead of the %d rows that are compared; gather takes those of all",
            *(rows, settings.batch_size),
        )
    divided = micro is not None and not (isinstance(micro, int) and micro >= rows)
    shared = settings.batch_norm == "sync"
    if not layers or not (divided or (world > 1 and not shared)):
        return
    size = f"{micro} rows" if isinstance(micro, int) else f"{micro.tokens} tokens" if micro else ""
    log.warning(
        "%d batch normalisation layers take the statistics of %s of %s process, instead of the %d rows that are "
        "compared, so that the result depends on how these are divided; training.batch_norm: frozen takes the running "
        "ones of a tower that was trained before",
        len(layers),
        f"about {size}" if divided else f"the {rows} rows",
        "each" if shared else "one",
        settings.batch_size,
    )


@contextmanager
def statistics_restored(module: nn.Module) -> Iterator[None]:
    """Within, batches that pass through ``module`` once more do not move its running statistics once more.

    So do the second pass of gradient caching and activations that are computed again. The values are put back, rather
    than the layers changed meanwhile: a graph that recomputes has to meet the layers as they were, and a compiled one
    would be compiled again.
    """
    buffers = [buffer for layer in learning_layers(module) for buffer in layer.buffers(recurse=False)]
    kept = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        if buffers:
            torch._foreach_copy_(buffers, kept)
