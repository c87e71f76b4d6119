"""AdamW's parameter groups and the learning rate's schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from mmcl.config.schema import TrainingConfig
from mmcl.runtime.errors import MmclError


def build_optimizer(module: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) over what is not frozen.

    Matrices and convolutions decay. Gains, biases and scalars such as the temperature do not: pulling a gain to zero
    switches its channel off, and pulling the temperature changes the loss instead of the model.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 else free).append(parameter)
    if not decayed and not free:
        raise MmclError("nothing is learned: every tower is frozen, without heads and with a fixed temperature")
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """The learning rate of optimizer step ``step`` (from 0) of ``steps``.

    It rises linearly over the warm-up, then stays or falls to zero, linearly or along half a cosine
    (Loshchilov & Hutter 2017, arXiv:1608.03983).
    """
    warmup = round(config.warmup * steps) if config.warmup < 1 else int(config.warmup)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "linear":
        return config.lr * (1 - progress)
    return config.lr * (1 + math.cos(math.pi * progress)) / 2
