"""Optimizers, their parameter groups, and the learning rate."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from mmcl.config.training import TrainingConfig
from mmcl.methods.parts.state import beside_weights
from mmcl.models.blocks import blocks, depths
from mmcl.models.embedder import embedders
from mmcl.runtime.errors import MmclError
from mmcl.runtime.schedules import SCHEDULES


def build_optimizer(module: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """``training.optimizer`` over what is not frozen.

    Matrices and convolutions decay. Gains, biases and scalars such as the temperature do not: pulling a gain to zero
    switches its channel off, and pulling the temperature changes the loss instead of the model. Nor does LARS adapt
    their rate, or Muon orthogonalise their updates. A group that names its own decay has it for all of its parameters.

    Each of its parameter groups has an ``lr_scale``: the factor of ``training.groups`` times that of
    ``training.layer_decay``, by which the schedule's rate is multiplied; and those whose decay has a schedule have
    ``scheduled_decay``. The groups and their order depend on the names alone, so that a resumed run finds its state.

    Raises:
        MmclError: nothing learns; or see :func:`freeze_groups` and :func:`layer_scales`.
    """
    freeze_groups(module, config)
    chosen = _group_of(module, config)
    scales = layer_scales(module, config.layer_decay) if config.layer_decay is not None else {}
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    settings: dict[tuple[float, float, bool, str, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            group = config.groups[chosen[name]] if name in chosen else None
            decay = config.weight_decay if parameter.ndim >= 2 else 0.0
            scheduled = config.weight_decay_end is not None and parameter.ndim >= 2
            if group is not None and group.weight_decay is not None:
                decay, scheduled = group.weight_decay, False
            scale = (group.lr if group else 1.0) * scales.get(name, 1.0)
            kind = _kind(parameter, id(parameter) in tables) if config.optimizer in ("lars", "muon") else ""
            # Full tensors and shards in one group is what torch's fused steps do not take.
            settings.setdefault((scale, decay, isinstance(parameter, DTensor), kind, scheduled), []).append(parameter)
    if not settings:
        raise MmclError("nothing is learned: every tower is frozen, without heads and with a fixed temperature")
    groups = [
        {"params": parameters, "weight_decay": decay, "lr": config.lr * scale, "lr_scale": scale}
        | ({"scheduled_decay": True} if scheduled else {})
        | (_options(kind, config) if kind else {})
        for (scale, decay, _, kind, scheduled), parameters in sorted(
            settings.items(), key=lambda item: item[0], reverse=True
        )
    ]
    if config.optimizer == "muon" and any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        raise MmclError(
            "training.optimizer: muon takes full matrices, of which training.parallel: fsdp has shards; set it to ddp"
        )
    return _optimizer(groups, config, fused=all(p.device.type in ("cpu", "cuda") for p in module.parameters()))


def _kind(parameter: nn.Parameter, table: bool) -> str:
    """``matrix``, also a convolution; ``vector``; or ``table`` of vectors that learn apart, as embeddings do."""
    if parameter.ndim < 2:
        return "vector"
    return "table" if table or 1 in parameter.shape[:2] else "matrix"


def _options(kind: str, config: TrainingConfig) -> dict[str, Any]:
    """What LARS and Muon are given for a group of parameters of one kind."""
    if config.optimizer == "lars":
        return {"always_adapt": kind != "vector"}
    return {"use_muon": True} if kind == "matrix" else {"use_muon": False, "nesterov": False, "eps": config.eps}


def _optimizer(groups: list[dict[str, Any]], config: TrainingConfig, *, fused: bool) -> torch.optim.Optimizer:
    """The optimizer that ``config`` names, of parameter groups.

    Args:
        groups: with their own decay and rate.
        config: the rest of the settings.
        fused: one pass over the memory instead of a dozen: on CPUs six times as fast.
    """
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
    momentum = config.momentum
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=config.lr, momentum=momentum, nesterov=config.nesterov and momentum > 0, foreach=True
        )
    from timm.optim import Lars, Muon

    optimizer: torch.optim.Optimizer
    if config.optimizer == "lars":
        optimizer = Lars(groups, lr=config.lr, momentum=momentum, trust_coeff=config.trust)
    else:
        optimizer = Muon(
            groups, lr=config.lr, momentum=momentum, nesterov=True, ns_coefficients="original", betas=config.betas
        )
    return optimizer


def freeze_groups(module: nn.Module, config: TrainingConfig) -> None:
    """Take the parameters whose group has a learning rate of 0 out of learning, so that they cost nothing.

    Called before data parallelism wraps ``module``, since that waits for the gradient of all that learns.

    Raises:
        MmclError: a group matches no parameter, or only those of the groups before it.
    """
    chosen = _group_of(module, config)
    for name, parameter in module.named_parameters():
        if name in chosen and config.groups[chosen[name]].lr == 0:
            parameter.requires_grad_(False)


def layer_scales(module: nn.Module, decay: float) -> dict[str, float]:
    """Factor on the learning rate of each parameter of a tower: ``decay`` to the power of its distance from the top.

    What comes after a tower's last block, and the head, have 1; the last block has ``decay``; with n blocks, what comes
    before the first has ``decay ** (n + 1)`` (Clark et al. 2020, arXiv:2003.10555; Bao et al. 2022, arXiv:2106.08254).

    Raises:
        MmclError: a tower that learns is no stack of blocks.
    """
    scales: dict[str, float] = {}
    for path, embedder in embedders(module).items():
        net: nn.Module = embedder.tower.net
        if not any(parameter.requires_grad for parameter in net.parameters()):
            continue
        top = len(blocks(net)) + 1
        if top == 1:
            raise MmclError(
                f"training.layer_decay: the {embedder.modality} tower ({type(net).__name__}) is no stack of "
                "blocks; set it to null, and the towers' rates by training.groups"
            )
        scales |= {f"{path}.tower.net.{name}": decay ** (top - depth) for name, depth in depths(net).items()}
    return scales


def public_name(name: str) -> str:
    """What a parameter is called in ``training.groups``: ``image.tower.net.…``, ``text.head.1.weight``,
    ``projector.1.weight``."""
    return name.removeprefix("encoder.embedders.").removeprefix("heads.")


def describe_learning(module: nn.Module) -> str:
    """Weights that learn, part by part: ``image.tower 1,204,288 of 5,407,116, text.tower frozen (22,713,216)``."""
    learned: dict[str, int] = {}
    there: dict[str, int] = {}
    for name, parameter in _weights(module):
        part = ".".join(public_name(name).split(".")[:2])
        there[part] = there.get(part, 0) + parameter.numel()
        learned[part] = learned.get(part, 0) + parameter.numel() * parameter.requires_grad
    described = []
    for part, total in there.items():
        if learned[part] == 0:
            described.append(f"{part} frozen ({total:,})")
        elif learned[part] != total:  # some towers have a pooler that is never used
            described.append(f"{part} {learned[part]:,} of {total:,}")
        else:
            described.append(f"{part} {total:,}" if total > 1 else part)
    return ", ".join(described)


def without_gradient(module: nn.Module) -> list[str]:
    """Names of the parameters that are to learn, but that the last backward pass gave no gradient.

    Some networks read a layer's weight instead of calling the layer (timm's BEiT its ``qkv``): an adapter beside it is
    never asked.
    """
    return [public_name(name) for name, p in module.named_parameters() if p.requires_grad and p.grad is None]


def _group_of(module: nn.Module, config: TrainingConfig) -> dict[str, int]:
    """Name of each parameter that a group matches, to the number of the first that does."""
    names = [name for name, _ in _weights(module)]
    chosen: dict[str, int] = {}
    for number, group in enumerate(config.groups):
        where = f"training.groups[{number}]: '{group.match}'"
        matched = [name for name in names if re.search(group.match, public_name(name))]
        if not matched:
            literal = re.sub(r"[\\^$.*+?()\[\]{}|]+", ".", group.match).strip(".")
            close = difflib.get_close_matches(literal, [public_name(name) for name in names], n=3, cutoff=0.0)
            raise MmclError(f"{where} matches no parameter; the nearest are {', '.join(close)}")
        if all(name in chosen for name in matched):
            raise MmclError(f"{where} matches only parameters that a group before it has; put it before that one")
        chosen |= {name: number for name in matched if name not in chosen}
    return chosen


def _weights(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters, but for those of copies that only follow what learns."""
    beside = tuple(beside_weights(module))
    return ((name, parameter) for name, parameter in module.named_parameters() if not name.startswith(beside))


def peak_rate(config: TrainingConfig) -> float:
    """The largest learning rate of a run: ``training.lr``, scaled to the rows of a step by ``training.lr_scaling``."""
    ratio = config.batch_size * config.accumulate / 256
    return config.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[config.lr_scaling]


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """The learning rate of optimizer step ``step`` (from 0) of ``steps``.

    It rises linearly over the warm-up, then follows ``training.schedule`` to zero.
    """
    peak = peak_rate(config)
    warmup = round(config.warmup * steps) if config.warmup < 1 else int(config.warmup)
    if step < warmup:
        return peak * (step + 1) / warmup
    return SCHEDULES[config.schedule](step - warmup, steps - warmup, peak, 0.0)
