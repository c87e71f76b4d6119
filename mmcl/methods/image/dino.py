"""DINO: each crop predicts what a slow copy of the tower makes of the global ones (Caron et al. 2021,
arXiv:2104.14294)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmcl.config.section import Fraction, Positive, Range
from mmcl.data.batches.batch import Inputs
from mmcl.losses import dino
from mmcl.methods.base import Context, Loss
from mmcl.methods.image.image_only import by_view, spread
from mmcl.methods.image.multi_crop import GLOBAL, MultiCrop, MultiCropConfig, all_together, warn_of_frozen
from mmcl.methods.outputs import Outputs
from mmcl.methods.parts.centre import Centre
from mmcl.methods.parts.heads import MlpConfig, mlp_head
from mmcl.methods.parts.momentum import MomentumCopy
from mmcl.methods.step import Step
from mmcl.models.heads import Prototypes
from mmcl.models.towers import Towers


class DinoConfig(MultiCropConfig):
    """One image tower, learned without labels from its own slow copy (Caron et al. 2021, arXiv:2104.14294)."""

    name: Literal["dino"] = "dino"
    local_crops: int = Field(default=8, ge=0)
    """Small crops beside the two global ones, which the copy does not see; 0 for none."""
    local_scale: Range = (0.05, 0.4)
    """Their area as a share of the image; that of the global ones is `augmentation.crop_scale`."""
    prototypes: int = Field(default=65536, ge=2)
    """Dimensions of the output."""
    student_temperature: Positive = 0.1
    """Of the predictions."""
    teacher_temperature: tuple[Positive, Positive] = (0.04, 0.07)
    """Of the copy's outputs, at the start and after the warm-up."""
    teacher_warmup: Fraction = 0.3
    """Share of the run in which that temperature rises, along a line."""
    centre_momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Decay of the mean of the copy's outputs, which is subtracted from them."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.996
    """Decay of the copy at the start; it rises to 1 along half a cosine."""
    freeze_prototypes: int = Field(default=1250, ge=0)
    """Optimizer steps at the start in which the last layer stays as it is: an epoch of ImageNet in the paper."""
    projector: MlpConfig = Field(
        default_factory=lambda: MlpConfig(hidden=[2048, 2048], dim=256, norm="none", activation="gelu")
    )
    """The head between the embeddings and the last layer."""


class Dino(MultiCrop):
    """Cross-entropy between the copy's distribution of a global crop and those of all other crops."""

    Config = DinoConfig
    config: DinoConfig

    def __init__(self, config: DinoConfig, encoder: Towers, context: Context) -> None:
        super().__init__(config, encoder, context)
        projector = self.add_head("projector", lambda: mlp_head(config.projector, encoder.width))
        prototypes = self.add_head("prototypes", lambda: Prototypes(config.projector.dim, config.prototypes))
        parts = {"image": encoder.embedder("image"), "projector": projector, "prototypes": prototypes}
        self.momentum = MomentumCopy(parts, config.momentum, statistics="batch")
        self.centre = Centre(config.prototypes, config.centre_momentum)

    def embed_keys(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        return {GLOBAL: self.momentum("image", **inputs[GLOBAL])} if self.training else {}

    def project(self, outputs: Outputs) -> Outputs:
        projections = all_together(self.heads["projector"], outputs.embeddings)
        targets = {name: self.momentum("projector", keys) for name, keys in outputs.keys.items()}
        return replace(outputs, embeddings=projections, keys=targets)

    def loss(self, outputs: Outputs, step: Step) -> Loss:
        student = _scores(self.heads["prototypes"], self.crops(outputs.embeddings))
        teacher = _scores(self.momentum.parts["prototypes"], by_view(outputs.keys[GLOBAL]))
        warm = step.ramp(*self.config.teacher_temperature, self.config.teacher_warmup)
        return Loss(dino(student, teacher, self.centre.value, self.config.student_temperature, warm))

    def metrics(self, outputs: Outputs) -> dict[str, float]:
        """The spread of the copy's projections, 0 when all are one point; and the entropy of its outputs as a share of
        the largest one, 0 when one dimension has all and 1 when all have the same."""
        teacher = _scores(self.momentum.parts["prototypes"], outputs.keys[GLOBAL]) - self.centre.value
        log_q = (teacher / self.config.teacher_temperature[1]).log_softmax(dim=1)
        entropy = -(log_q.exp() * log_q).sum(dim=1).mean() / math.log(self.config.prototypes)
        return {"spread": spread(outputs.keys[GLOBAL]), "entropy": entropy.item()}

    def require_steps(self, steps: int) -> None:
        warn_of_frozen(self.config.freeze_prototypes, steps)

    def before_update(self, step: Step) -> None:
        if step.number < self.config.freeze_prototypes:
            self.heads["prototypes"].weight.grad = None

    @torch.no_grad()
    def after_update(self, outputs: Outputs, step: Step) -> None:
        self.centre.update(_scores(self.momentum.parts["prototypes"], outputs.keys[GLOBAL]))
        self.momentum.update(step.cosine(self.config.momentum, 1.0))


def _scores(prototypes: Any, projections: Tensor) -> Tensor:
    """(…, K) cosines of (…, D) projections: the last layer has normalised inputs and weights."""
    return F.linear(F.normalize(projections, dim=-1), F.normalize(prototypes.weight, dim=1))
