"""CLIP: image and text towers under a symmetric InfoNCE loss (Radford et al. 2021, arXiv:2103.00020)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from mmcl.config.methods import ClipConfig
from mmcl.losses import info_nce
from mmcl.methods.base import Batch, Views
from mmcl.methods.image_text import ImageText

LARGEST_SCALE = math.log(100.0)


class Clip(ImageText):
    """Each picture is told from the batch by its text, and each text by its picture."""

    config: ClipConfig
    start_temperature: ClassVar[float] = 0.07

    @property
    def extra(self) -> dict[str, int]:
        """Further captions, as negatives of every picture."""
        return {"text": self.config.extra_texts} if self.config.extra_texts else {}

    def embed(self, batch: Batch) -> Views:
        views = super().embed(batch)
        if "text" in batch.extra:
            views["negatives"] = self.encoder.embedder("text")(**batch.extra["text"])
            views["negative_ids"] = batch.extra_ids["text"]
        return views

    def contrast(self, views: Views) -> Tensor:
        return info_nce(
            views["image"],
            views["text"],
            self.temperature,
            ids=views["ids"],
            negatives=views.get("negatives"),
            negative_ids=views.get("negative_ids"),
            label_smoothing=self.config.label_smoothing,
        )

    @torch.no_grad()
    def after_step(self) -> None:
        # Clamped here rather than in the loss, where a scale beyond the clamp would get no gradient to come back with.
        self.logit_scale.clamp_(0.0, LARGEST_SCALE)
