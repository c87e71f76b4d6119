"""CLIP: image and text towers under a symmetric InfoNCE loss (Radford et al. 2021, arXiv:2103.00020)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from mmcl.config.methods import ClipConfig
from mmcl.losses import info_nce
from mmcl.methods.base import Batch, Views
from mmcl.methods.image_text import ImageText


class Clip(ImageText):
    """Each picture is told from the batch by its text, and each text by its picture."""

    config: ClipConfig
    start_temperature: ClassVar[float] = 0.07

    @property
    def extra(self) -> dict[str, int]:
        """Further captions, as negatives of every picture."""
        return {"text": self.config.extra_texts} if self.config.extra_texts else {}

    @property
    def compared(self) -> tuple[str, ...]:
        return (*self.sides, "negatives")

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
