"""What the methods share whose rows are pairs in one space, compared at a temperature."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from mmcl.config.methods import ClipConfig, SiglipConfig, SimcseConfig
from mmcl.losses import batch_accuracy, distillation, matryoshka
from mmcl.methods.base import Loss, Method, Setting, Views
from mmcl.models.encoder import Encoder
from mmcl.runtime.errors import MmclError

TEACHER_TEMPERATURE = 0.01  # at which CLIP models end
LARGEST_SCALE = math.log(100.0)


class Paired(Method):
    """Two views of a row, compared at a temperature that may be learned; a subclass says by which loss.

    Where the config names no temperature to start at, that of the encoder is taken.

    Attributes:
        logit_scale: ln(1/τ).
    """

    sides: ClassVar[tuple[str, str]]
    """The two views that belong together."""

    start_temperature: ClassVar[float]
    """Where neither the config nor the model to start from names one."""

    config: ClipConfig | SiglipConfig | SimcseConfig

    def __init__(
        self, config: ClipConfig | SiglipConfig | SimcseConfig, encoder: Encoder, **setting: Unpack[Setting]
    ) -> None:
        super().__init__(config, encoder, **setting)
        start = _start(config.temperature, encoder, self.start_temperature)
        self.logit_scale = nn.Parameter(torch.tensor(start), requires_grad=config.learn_temperature)
        for dim in config.matryoshka.dims if config.matryoshka else ():
            if dim >= encoder.dim:
                raise MmclError(
                    f"method.matryoshka.dims: {dim} is no part of the model's {encoder.dim} dimensions, of which all "
                    "are learned anyway; leave it out"
                )

    @property
    def temperature(self) -> Tensor:
        """τ = exp(-logit_scale)."""
        return (-self.logit_scale).exp()

    def learned_scale(self) -> tuple[float | None, float | None]:
        """``logit_scale`` and ``logit_bias`` as they stand, for the encoder to keep; no bias for a method without."""
        return self.logit_scale.item(), None

    @property
    def compared(self) -> tuple[str, ...]:
        """The views, where there are such, that are embeddings by the encoder that learns."""
        return self.sides

    @abstractmethod
    def contrast(self, views: Views) -> Tensor:
        """The loss of the views alone, whatever the number of their dimensions."""

    def loss(self, views: Views) -> Loss:
        """The contrast, at all dimensions asked for, and what the config adds to it."""
        cut = self.config.matryoshka
        if cut is None:
            value = self.contrast(views)
        else:
            names = [name for name in self.compared if name in views]
            value = matryoshka(self.contrast, views, names, cut.dims, cut.weights)
        terms = self.further_terms(views)
        if not terms:
            return Loss(value)
        parts = {"contrastive": value} | {name: term for name, (_, term) in terms.items()}
        return Loss(value + sum(weight * term for weight, term in terms.values()), parts)

    def further_terms(self, views: Views) -> dict[str, tuple[float, Tensor]]:
        """What is added to the contrast: name to weight and value."""
        config = self.config.teacher
        if config is None:
            return {}
        query, key = self.sides
        term = distillation(
            views[query],
            views[key],
            views[f"teacher_{query}"],
            views[f"teacher_{key}"],
            self.temperature,
            math.exp(-_start(config.temperature, self.references["teacher"], TEACHER_TEMPERATURE)),
        )
        return {"distillation": (config.weight, term)}

    def metrics(self, views: Views) -> dict[str, float]:
        query, key = self.sides
        accuracy = batch_accuracy(views[query], views[key], ids=views["ids"])
        return {"accuracy": accuracy.item(), "temperature": self.temperature.item()}

    @torch.no_grad()
    def after_step(self) -> None:
        # Clamped here rather than in the loss, where a scale beyond the clamp would get no gradient to come back with.
        self.logit_scale.clamp_(0.0, LARGEST_SCALE)


def _start(temperature: float | None, encoder: Encoder, otherwise: float) -> float:
    """ln(1/τ) of the temperature asked for, else of the encoder, else of ``otherwise``."""
    if temperature is not None:
        return -math.log(temperature)
    return -math.log(otherwise) if encoder.logit_scale is None else encoder.logit_scale
