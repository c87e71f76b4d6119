"""CLIP: image and text towers under a symmetric InfoNCE loss (Radford et al. 2021, arXiv:2103.00020)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmcl.config.schema import ClipConfig
from mmcl.data.augment import Augmentation
from mmcl.losses import batch_accuracy, info_nce
from mmcl.methods.base import Batch, Loss, Method, Views
from mmcl.models.encoder import Encoder

LARGEST_SCALE = math.log(100.0)


class Clip(Method):
    """Each picture is told from the batch by its text, and each text by its picture."""

    inputs: ClassVar[dict[str, str]] = {"image": "image", "text": "text"}

    def __init__(self, config: ClipConfig, encoder: Encoder, augmentation: Augmentation | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.augmentation = augmentation
        self._extra_texts = config.extra_texts
        self.logit_scale = nn.Parameter(
            torch.tensor(math.log(1 / (config.temperature or 0.07))), requires_grad=config.learn_temperature
        )

    @property
    def temperature(self) -> Tensor:
        """τ = exp(-logit_scale), between 0.01 and 1."""
        return (-self.logit_scale).exp()

    @property
    def extra(self) -> dict[str, int]:
        """Further captions, as negatives of every picture."""
        return {"text": self._extra_texts} if self._extra_texts else {}

    def embed(self, batch: Batch) -> Views:
        image = batch.inputs["image"]
        if self.augmentation is not None and self.training and "pixels" in image:
            image = {"pixels": self.augmentation(image["pixels"], batch.seeds)}
        views = {
            "image": self.encoder.embedder("image")(**image),
            "text": self.encoder.embedder("text")(**batch.inputs["text"]),
            "ids": batch.ids,
        }
        if "text" in batch.extra:
            views["negatives"] = self.encoder.embedder("text")(**batch.extra["text"])
            views["negative_ids"] = batch.extra_ids["text"]
        return views

    def loss(self, views: Views) -> Loss:
        value = info_nce(
            views["image"],
            views["text"],
            self.temperature,
            ids=views["ids"],
            negatives=views.get("negatives"),
            negative_ids=views.get("negative_ids"),
        )
        return Loss(value)

    def metrics(self, views: Views) -> dict[str, float]:
        accuracy = batch_accuracy(views["image"], views["text"], ids=views["ids"])
        return {"accuracy": accuracy.item(), "temperature": self.temperature.item()}

    @torch.no_grad()
    def after_step(self) -> None:
        # Clamped here rather than in the loss, where a scale beyond the clamp would get no gradient to come back with.
        self.logit_scale.clamp_(0.0, LARGEST_SCALE)
