"""VICReg: variance, invariance and covariance of two augmentations (Bardes et al. 2022, arXiv:2105.04906)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from mmcl.config.methods import MethodConfig
from mmcl.losses import vicreg_terms
from mmcl.methods.base import Context, Loss
from mmcl.methods.image.image_only import ImageOnly, both_views, per_view
from mmcl.methods.outputs import Outputs
from mmcl.methods.parts.heads import MlpConfig, mlp_head
from mmcl.methods.step import Step
from mmcl.models.towers import Towers

Weight = Annotated[float, Field(ge=0.0)]


class VicregConfig(MethodConfig):
    """One image tower, learned without negatives by variance, invariance and covariance (Bardes et al. 2022,
    arXiv:2105.04906)."""

    name: Literal["vicreg"] = "vicreg"
    invariance_weight: Weight = 25.0
    """λ: of the squared difference of the views."""
    variance_weight: Weight = 25.0
    """μ: of how much the standard deviations of the dimensions fall short of 1."""
    covariance_weight: Weight = 1.0
    """ν: of the squared covariances of different dimensions."""
    projector: MlpConfig = Field(default_factory=lambda: MlpConfig(hidden=[8192, 8192], dim=8192, bias=False))
    """The head between the embeddings and the loss, the paper's expander; wide ones take memory of their square."""


class Vicreg(ImageOnly):
    """Expanded embeddings of two augmentations are alike; their dimensions vary, and do not with each other."""

    Config = VicregConfig
    config: VicregConfig

    def __init__(self, config: VicregConfig, encoder: Towers, context: Context) -> None:
        super().__init__(config, encoder, context)
        self.add_head("projector", lambda: mlp_head(config.projector, encoder.width))

    def project(self, outputs: Outputs) -> Outputs:
        expanded = per_view(self.heads["projector"], outputs.embeddings["image"])
        return replace(outputs, embeddings={"image": expanded})

    def loss(self, outputs: Outputs, step: Step) -> Loss:
        terms, config = vicreg_terms(*both_views(outputs)), self.config
        value = (
            config.invariance_weight * terms.invariance
            + config.variance_weight * terms.variance
            + config.covariance_weight * terms.covariance
        )
        return Loss(value, terms._asdict())
