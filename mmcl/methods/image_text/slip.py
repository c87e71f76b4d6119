"""SLIP: CLIP, and SimCLR on the same image tower (Mu et al. 2021, arXiv:2112.12750)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import Tensor

from mmcl.config.data import AugmentationConfig
from mmcl.config.section import Positive, Range
from mmcl.data.batches.batch import Inputs
from mmcl.data.batches.views import Augment, View
from mmcl.methods.base import Context
from mmcl.methods.image.image_only import by_view, per_view, require_augmentation
from mmcl.methods.image.simclr import SimclrConfig, agreement
from mmcl.methods.image_text.clip import Clip, ClipConfig
from mmcl.methods.outputs import Outputs
from mmcl.methods.parts.heads import MlpConfig, mlp_head
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError

VIEWS = "augmented"  # two views of each image, beside the one that belongs to the text


class SlipConfig(ClipConfig):
    """Image and text towers under CLIP's loss, the image tower under SimCLR's besides (Mu et al. 2021,
    arXiv:2112.12750)."""

    name: Literal["slip"] = "slip"  # type: ignore[assignment]
    ssl_scale: Positive = 1.0
    """Weight of SimCLR's loss, where CLIP's has 1."""
    crop_scale: Range = (0.5, 1.0)
    """Area of the random crop of an image that its text is compared with, which is not changed otherwise. What
    `augmentation` says changes the two views that are compared with each other."""
    image: SimclrConfig = Field(
        default_factory=lambda: SimclrConfig(temperature=0.1, projector=MlpConfig(hidden=[4096, 4096], dim=256))
    )
    """SimCLR's settings; its head stands on the tower's features."""


class Slip(Clip):
    """InfoNCE between images and texts, and NT-Xent between the projected features of two augmentations."""

    Config = SlipConfig
    config: SlipConfig

    def __init__(self, config: SlipConfig, encoder: Towers, context: Context) -> None:
        super().__init__(config, encoder, context)
        require_augmentation(config.name, context)
        self.image = self.sides[0]
        if self.columns[self.image] != "image":
            raise MmclError(f"model.towers.{self.image}: the first tower of method 'slip' is that of the images")
        width = encoder.image(self.image).tower.width
        self.add_head("projector", lambda: mlp_head(config.image.projector, width))

    @property
    def rings(self) -> bool:
        """As for SimCLR: where it is asked for; else the projector takes the statistics of the global batch."""
        return self.context.exchange == "ring"

    @property
    def probe_view(self) -> str:
        return self.image

    def views(self) -> dict[str, View]:
        crop = Augment(AugmentationConfig(crop_scale=self.config.crop_scale))
        pair = super().views()
        # Before the pair: `augmentation.second` is of a column's second draw.
        return (
            {VIEWS: View(self.image, self.image, self.augment, count=2)}
            | pair
            | {self.image: replace(pair[self.image], transform=crop)}
        )

    def embed(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        return super().embed(inputs) | {VIEWS: self.encoder.image(self.image).features(**inputs[VIEWS])}

    def project(self, outputs: Outputs) -> Outputs:
        projections = {VIEWS: per_view(self.heads["projector"], outputs.embeddings[VIEWS])}
        return replace(outputs, embeddings=outputs.embeddings | projections)

    def added_terms(self, outputs: Outputs) -> dict[str, tuple[float, Tensor]]:
        first, second = by_view(outputs.embeddings[VIEWS])
        ids = outputs.rows.ids[:, 0]  # of the images
        value = agreement(self.config.image, first, second, ids, self.across)
        return super().added_terms(outputs) | {"image": (self.config.ssl_scale, value)}
