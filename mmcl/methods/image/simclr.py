"""SimCLR: agreement of two augmentations of an image (Chen et al. 2020, arXiv:2002.05709)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from mmcl.config.methods import MethodConfig
from mmcl.losses import Blockwise, batch_accuracy, nt_xent
from mmcl.methods.base import Context, Loss
from mmcl.methods.image.image_only import ImageOnly, both_views
from mmcl.methods.outputs import Outputs
from mmcl.methods.parts.heads import MlpConfig, mlp_head
from mmcl.methods.step import Step
from mmcl.models.towers import Towers


class SimclrConfig(MethodConfig):
    """One image tower, learned from two augmentations of each image (Chen et al. 2020, arXiv:2002.05709)."""

    name: Literal["simclr"] = "simclr"
    temperature: Annotated[float, Field(ge=0.01, le=1.0)] = 0.5
    """Of NT-Xent; small batches of small images do well with 0.5, ImageNet with 0.1."""
    decoupled: bool = False
    """Whether the positive is left out of its own denominator (DCL, Yeh et al. 2022, arXiv:2110.06848), which does well
    in small batches; with a temperature of 0.1."""
    projector: MlpConfig = Field(default_factory=MlpConfig)
    """The head between the embeddings and the loss."""


class Simclr(ImageOnly):
    """NT-Xent between the projections of two augmentations of each image."""

    Config = SimclrConfig
    config: SimclrConfig
    fractions: ClassVar[Mapping[str, str]] = {"accuracy": "Accuracy within the batch"}

    def __init__(self, config: SimclrConfig, encoder: Towers, context: Context) -> None:
        super().__init__(config, encoder, context)
        self.add_head("projector", lambda: mlp_head(config.projector, encoder.width))

    @property
    def rings(self) -> bool:
        """Where it is asked for; else every process has the global batch, whose statistics the projector takes."""
        return self.context.exchange == "ring"

    @property
    def negatives_per_query(self) -> int:
        return 2 * self.context.batch_size - 2

    def project(self, outputs: Outputs) -> Outputs:
        return replace(outputs, embeddings={"image": self.heads["projector"](outputs.embeddings["image"])})

    def loss(self, outputs: Outputs, step: Step) -> Loss:
        return Loss(agreement(self.config, *both_views(outputs), outputs.rows.ids, self.across))

    def metrics(self, outputs: Outputs) -> dict[str, float]:
        blockwise = Blockwise(across=self.across)
        return {"accuracy": batch_accuracy(*both_views(outputs), ids=outputs.rows.ids, blockwise=blockwise).item()}


def agreement(
    config: SimclrConfig, view_a: Tensor, view_b: Tensor, ids: Tensor, across: Literal["gather", "ring"] | None
) -> Tensor:
    """NT-Xent of the (N, D) projections of two views, as ``config`` says."""
    blockwise = Blockwise(across=across)
    return nt_xent(view_a, view_b, config.temperature, ids=ids, decoupled=config.decoupled, blockwise=blockwise)
