"""SupCon: agreement of all images of a label (Khosla et al. 2020, arXiv:2004.11362)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from mmcl.config import schema
from mmcl.config.methods import MethodConfig
from mmcl.losses import Blockwise, batch_accuracy, sup_con
from mmcl.methods.base import Context, Loss
from mmcl.methods.image.image_only import ImageOnly, both_views, refuse_other_roles
from mmcl.methods.outputs import Outputs
from mmcl.methods.parts.heads import MlpConfig, mlp_head
from mmcl.methods.step import Step
from mmcl.models.towers import Towers


class SupConConfig(MethodConfig):
    """One image tower, learned from two augmentations of each image and its label (Khosla et al. 2020,
    arXiv:2004.11362)."""

    name: Literal["sup_con"] = "sup_con"
    temperature: Annotated[float, Field(ge=0.01, le=1.0)] = 0.1
    """That of the paper; its code has 0.07 by default, and 0.1 in the commands that it gives."""
    projector: MlpConfig = Field(default_factory=lambda: MlpConfig(hidden=[2048], dim=128, norm="none"))
    """The head between the embeddings and the loss."""


class SupCon(ImageOnly):
    """Supervised contrastive loss of the projections of two augmentations of each image.

    Views of one label are each other's positives, those of all others negatives: what is the same image is left to the
    labels.
    """

    Config = SupConConfig
    config: SupConConfig
    fractions: ClassVar[Mapping[str, str]] = {"accuracy": "Accuracy among other labels of the batch"}

    def __init__(self, config: SupConConfig, encoder: Towers, context: Context) -> None:
        super().__init__(config, encoder, context)
        self.add_head("projector", lambda: mlp_head(config.projector, encoder.width))

    @classmethod
    def columns_of(cls, config: schema.Config) -> dict[str, str]:
        columns = {"image": "image", "label": "label"}
        refuse_other_roles(config, columns)
        return columns

    @property
    def rings(self) -> bool:
        """Where it is asked for; else every process has the global batch, whose statistics the projector may take."""
        return self.context.exchange == "ring"

    def compared_with(self, extra: int = 0) -> str:
        return f"{2 * self.context.batch_size - 1:,} views for each, positives where the label is the same"

    def project(self, outputs: Outputs) -> Outputs:
        return replace(outputs, embeddings={"image": self.heads["projector"](outputs.embeddings["image"])})

    def loss(self, outputs: Outputs, step: Step) -> Loss:
        features = outputs.embeddings["image"].unflatten(0, (-1, 2))  # (N, 2, D)
        labels, blockwise = outputs.rows.labels["label"], Blockwise(across=self.across)
        return Loss(sup_con(features, labels, self.config.temperature, blockwise=blockwise))

    def metrics(self, outputs: Outputs) -> dict[str, float]:
        """How often the other view of an image is nearer than those of all other labels."""
        labels, blockwise = outputs.rows.labels["label"], Blockwise(across=self.across)
        return {"accuracy": batch_accuracy(*both_views(outputs), ids=labels, blockwise=blockwise).item()}
