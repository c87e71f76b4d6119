"""SigLIP: image and text towers under a pairwise sigmoid loss (Zhai et al. 2023, arXiv:2303.15343)."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmcl.config.methods import MethodConfig
from mmcl.losses import Blockwise, sigmoid
from mmcl.methods.base import Context
from mmcl.methods.image_text.image_text import ImageText
from mmcl.methods.outputs import Outputs
from mmcl.methods.paired import Compared
from mmcl.methods.parts.matryoshka import MatryoshkaConfig
from mmcl.methods.parts.references import TeacherConfig
from mmcl.models.towers import Towers


class SiglipConfig(MethodConfig):
    """Image and text towers under a pairwise sigmoid loss (Zhai et al. 2023, arXiv:2303.15343)."""

    name: Literal["siglip"] = "siglip"
    temperature: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Temperature at the start; if absent that of the model to start from, where `bias` is set or that model has one,
    and else 0.1."""
    bias: float | None = None
    """Bias at the start; that of the model to start from if absent, and else the log-odds of a positive, -ln(N - 1)
    for a global batch of N."""
    learn_temperature: bool = True
    """Learn the temperature."""
    learn_bias: bool = True
    """Learn the bias."""
    teacher: TeacherConfig | None = None
    """Learn the similarities of another model besides."""
    matryoshka: MatryoshkaConfig | None = None
    """Compute the loss of the first dimensions as well."""


class Siglip(ImageText):
    """Pairwise sigmoid loss: for each image and each text, whether they belong together.

    The bias starts at the log-odds of a positive, -ln(N - 1) in a global batch of N, so that the many negatives need
    not push it there first. With that bias the temperature of a model to start from is not taken: at CLIP's 0.01 even a
    negative's similarity of 0.2 would outweigh the bias of any batch. Unlike CLIP's, the temperature is not kept from
    falling below 0.01: that of the published models is less.

    Attributes:
        logit_bias: the bias b, added to the scaled similarity.
    """

    Config = SiglipConfig
    config: SiglipConfig
    start_temperature: ClassVar[float] = 0.1
    scale_bounds: ClassVar[tuple[float, float]] = (-math.inf, math.inf)  # the temperature is free

    def __init__(self, config: SiglipConfig, encoder: Towers, context: Context) -> None:
        super().__init__(config, encoder, context)
        bias = config.bias if config.bias is not None else encoder.logit_bias
        if bias is None and config.temperature is None:
            self.logit_scale.data.fill_(-math.log(self.start_temperature))
        start = -math.log(context.batch_size - 1) if bias is None else bias
        self.logit_bias = nn.Parameter(torch.tensor(start), requires_grad=config.learn_bias)

    def learned_scale(self) -> tuple[float | None, float | None]:
        return self.logit_scale.item(), self.logit_bias.item()

    def contrast(self, compared: Compared) -> Tensor:
        outputs, (first, second) = compared.outputs, self.sides
        return sigmoid(
            outputs.embeddings[first],
            outputs.embeddings[second],
            self.temperature,
            self.logit_bias,
            ids=outputs.rows.ids,
            blockwise=Blockwise(across=self.across),
        )

    def metrics(self, outputs: Outputs) -> dict[str, float]:
        return super().metrics(outputs) | {"bias": self.logit_bias.item()}
