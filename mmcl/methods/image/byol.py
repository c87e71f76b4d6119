"""BYOL: one augmentation predicts what a slow copy makes of the other (Grill et al. 2020, arXiv:2006.07733)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from mmcl.config.methods import MethodConfig
from mmcl.data.batches.batch import Inputs
from mmcl.losses import negative_cosine
from mmcl.methods.base import Context, Loss
from mmcl.methods.image.image_only import ImageOnly, by_view, per_view, spread
from mmcl.methods.outputs import Outputs
from mmcl.methods.parts.heads import MlpConfig, mlp_head
from mmcl.methods.parts.momentum import MomentumCopy
from mmcl.methods.step import Step
from mmcl.models.towers import Towers


class ByolConfig(MethodConfig):
    """One image tower, learned without negatives from its own slow copy (Grill et al. 2020, arXiv:2006.07733)."""

    name: Literal["byol"] = "byol"
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.996
    """Decay of the copy at the start; it rises to 1 along half a cosine."""
    projector: MlpConfig = Field(default_factory=lambda: MlpConfig(hidden=[4096], dim=256))
    """The head between the embeddings and the predictor."""
    predictor: MlpConfig = Field(default_factory=lambda: MlpConfig(hidden=[4096], dim=256))
    """The head that the copy lacks; its `dim` is that of the projector."""


class Byol(ImageOnly):
    """Negative cosine between the prediction for one augmentation and the copy's projection of the other."""

    Config = ByolConfig
    config: ByolConfig

    def __init__(self, config: ByolConfig, encoder: Towers, context: Context) -> None:
        super().__init__(config, encoder, context)
        projector = self.add_head("projector", lambda: mlp_head(config.projector, encoder.width))
        same = config.predictor.model_copy(update={"dim": config.projector.dim})
        self.add_head("predictor", lambda: mlp_head(same, config.projector.dim))
        parts = {"image": encoder.embedder("image"), "projector": projector}
        self.momentum = MomentumCopy(parts, config.momentum, statistics="batch")

    def embed_keys(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        return {"image": self.momentum("image", **inputs["image"])} if self.training else {}

    def project(self, outputs: Outputs) -> Outputs:
        predictions = per_view(self.heads["predictor"], per_view(self.heads["projector"], outputs.embeddings["image"]))
        copied = partial(self.momentum, "projector")
        targets = {name: per_view(copied, keys) for name, keys in outputs.keys.items()}
        return replace(outputs, embeddings={"image": predictions}, keys=targets)

    def loss(self, outputs: Outputs, step: Step) -> Loss:
        (online_1, online_2), (target_1, target_2) = (
            by_view(vectors["image"]) for vectors in (outputs.embeddings, outputs.keys)
        )
        return Loss(4 + 2 * negative_cosine(online_1, target_2) + 2 * negative_cosine(online_2, target_1))

    def metrics(self, outputs: Outputs) -> dict[str, float]:
        """The spread of the copy's projections, near 0 when all have become one point and near 1 when they fill the
        sphere."""
        return {"spread": spread(outputs.keys["image"])}

    def after_update(self, outputs: Outputs, step: Step) -> None:
        self.momentum.update(step.cosine(self.config.momentum, 1.0))
