"""SimSiam: one augmentation predicts the projection of the other, which gets no gradient (Chen & He 2020,
arXiv:2011.10566)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from mmcl.config.methods import MethodConfig
from mmcl.losses import negative_cosine
from mmcl.methods.base import Context, Loss
from mmcl.methods.image.image_only import ImageOnly, by_view, per_view, spread
from mmcl.methods.outputs import Outputs
from mmcl.methods.parts.heads import MlpConfig, mlp_head
from mmcl.methods.step import Step
from mmcl.models.towers import Towers


class SimsiamConfig(MethodConfig):
    """One image tower, learned without negatives and without a copy (Chen & He 2020, arXiv:2011.10566)."""

    name: Literal["simsiam"] = "simsiam"
    projector: MlpConfig = Field(default_factory=lambda: MlpConfig(hidden=[2048, 2048], dim=2048, norm_output=True))
    """The head between the embeddings and the predictor."""
    predictor: MlpConfig = Field(default_factory=lambda: MlpConfig(hidden=[512], dim=2048))
    """The head of what predicts, a bottleneck; its `dim` is that of the projector."""


class Simsiam(ImageOnly):
    """Negative cosine between the prediction for one augmentation and the projection of the other, held fixed."""

    Config = SimsiamConfig
    config: SimsiamConfig

    def __init__(self, config: SimsiamConfig, encoder: Towers, context: Context) -> None:
        super().__init__(config, encoder, context)
        self.add_head("projector", lambda: mlp_head(config.projector, encoder.width))
        same = config.predictor.model_copy(update={"dim": config.projector.dim})
        self.add_head("predictor", lambda: mlp_head(same, config.projector.dim))

    def project(self, outputs: Outputs) -> Outputs:
        projections = per_view(self.heads["projector"], outputs.embeddings["image"])
        predictions = per_view(self.heads["predictor"], projections)
        return replace(outputs, embeddings={"image": predictions}, keys={"image": projections.detach()})

    def loss(self, outputs: Outputs, step: Step) -> Loss:
        (p_1, p_2), (z_1, z_2) = by_view(outputs.embeddings["image"]), by_view(outputs.keys["image"])
        return Loss(negative_cosine(p_1, z_2) / 2 + negative_cosine(p_2, z_1) / 2)

    def metrics(self, outputs: Outputs) -> dict[str, float]:
        """The spread of the projections, near 0 when all have become one point and near 1 when they fill the sphere."""
        return {"spread": spread(outputs.keys["image"])}
