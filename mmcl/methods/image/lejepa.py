"""LeJEPA: all crops predict the mean of the global ones, in a space that must be Gaussian (Balestriero & LeCun 2025,
arXiv:2511.08544)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mmcl.config.section import Fraction, Range
from mmcl.losses import centre_prediction, sigreg
from mmcl.methods.base import Context, Loss
from mmcl.methods.image.image_only import spread
from mmcl.methods.image.multi_crop import GLOBAL, MultiCrop, MultiCropConfig, all_together
from mmcl.methods.outputs import Outputs
from mmcl.methods.parts.heads import MlpConfig, mlp_head
from mmcl.methods.step import Step
from mmcl.models.towers import Towers


class LejepaConfig(MultiCropConfig):
    """One image tower, learned without negatives, copies or stopped gradients (Balestriero & LeCun 2025,
    arXiv:2511.08544)."""

    name: Literal["lejepa"] = "lejepa"
    local_crops: int = Field(default=6, ge=0)
    """Small crops beside the two global ones; 0 for none."""
    local_scale: Range = (0.05, 0.3)
    """Their area as a share of the image; that of the global ones is `augmentation.crop_scale`."""
    regularisation: Fraction = 0.05
    """λ: the share of the Gaussian term in the loss; 0.01 to 0.1 do well."""
    directions: int = Field(default=1024, ge=1)
    """On which the distribution of each view is compared with the Gaussian's, drawn anew in each step."""
    projector: MlpConfig = Field(default_factory=lambda: MlpConfig(hidden=[2048, 2048]))
    """The head between the embeddings and the loss."""


class Lejepa(MultiCrop):
    """The distance of all crops from the mean of the global ones, and of their distribution from a Gaussian."""

    Config = LejepaConfig
    config: LejepaConfig

    def __init__(self, config: LejepaConfig, encoder: Towers, context: Context) -> None:
        super().__init__(config, encoder, context)
        self.add_head("projector", lambda: mlp_head(config.projector, encoder.width))

    def project(self, outputs: Outputs) -> Outputs:
        return replace(outputs, embeddings=all_together(self.heads["projector"], outputs.embeddings))

    def loss(self, outputs: Outputs, step: Step) -> Loss:
        crops, share = self.crops(outputs.embeddings), self.config.regularisation
        prediction, gaussian = centre_prediction(crops), sigreg(crops, self._directions(step).to(crops))
        return Loss((1 - share) * prediction + share * gaussian, {"prediction": prediction, "sigreg": gaussian})

    def _directions(self, step: Step) -> Tensor:
        """(D, M), the same on all processes and in a run that was resumed."""
        generator = torch.Generator().manual_seed(step.number)
        return torch.randn(self.config.projector.dim, self.config.directions, generator=generator)

    def metrics(self, outputs: Outputs) -> dict[str, float]:
        """The spread of the projections, near 0 when all have become one point and near 1 when they fill the sphere."""
        return {"spread": spread(outputs.embeddings[GLOBAL])}
