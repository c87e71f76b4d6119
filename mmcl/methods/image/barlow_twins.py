"""Barlow Twins: two augmentations correlate, and their dimensions do not (Zbontar et al. 2021, arXiv:2103.03230)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from mmcl.config.methods import MethodConfig
from mmcl.losses import barlow_twins, cross_correlation
from mmcl.methods.base import Context, Loss
from mmcl.methods.image.image_only import ImageOnly, both_views, per_view
from mmcl.methods.outputs import Outputs
from mmcl.methods.parts.heads import MlpConfig, mlp_head
from mmcl.methods.step import Step
from mmcl.models.towers import Towers


class BarlowTwinsConfig(MethodConfig):
    """One image tower, learned without negatives by redundancy reduction (Zbontar et al. 2021, arXiv:2103.03230)."""

    name: Literal["barlow_twins"] = "barlow_twins"
    redundancy_weight: Annotated[float, Field(ge=0.0)] = 0.0051
    """λ: of the correlations between different dimensions, beside those of each with itself."""
    loss_scale: Annotated[float, Field(gt=0.0)] = 1.0
    """What the loss is multiplied by. It is a sum over the dimensions; the authors take 0.024 with `lars`."""
    projector: MlpConfig = Field(default_factory=lambda: MlpConfig(hidden=[8192, 8192], dim=8192, bias=False))
    """The head between the embeddings and the loss; wide outputs do well, and take memory of their square."""


class BarlowTwins(ImageOnly):
    """The distance from the identity of the cross-correlation between projections of two augmentations."""

    Config = BarlowTwinsConfig
    config: BarlowTwinsConfig

    def __init__(self, config: BarlowTwinsConfig, encoder: Towers, context: Context) -> None:
        super().__init__(config, encoder, context)
        self.add_head("projector", lambda: mlp_head(config.projector, encoder.width))

    def project(self, outputs: Outputs) -> Outputs:
        projections = per_view(self.heads["projector"], outputs.embeddings["image"])
        return replace(outputs, embeddings={"image": projections})

    def loss(self, outputs: Outputs, step: Step) -> Loss:
        return Loss(self.config.loss_scale * barlow_twins(*both_views(outputs), self.config.redundancy_weight))

    def metrics(self, outputs: Outputs) -> dict[str, float]:
        """Means of the correlation of a dimension with itself, to be 1, and of the size of others, to be 0."""
        correlation = cross_correlation(*both_views(outputs))
        alike = correlation.diagonal()
        others = max(correlation.numel() - len(alike), 1)
        redundancy = (correlation - alike.diag()).abs().sum() / others
        return {"correlation": alike.mean().item(), "redundancy": redundancy.item()}
