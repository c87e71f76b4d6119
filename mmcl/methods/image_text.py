"""What the methods over pairs of an image and a text share."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmcl.config.methods import ClipConfig, SiglipConfig, TeacherConfig
from mmcl.data.augment import Augmentation
from mmcl.losses import batch_accuracy, distillation
from mmcl.methods.base import Batch, Loss, Method, Views
from mmcl.models.encoder import Encoder

TEACHER_TEMPERATURE = 0.01  # at which CLIP models end


class ImageText(Method):
    """Images and texts in one space, compared at a learned temperature; a subclass says by which loss.

    Args:
        config: of the method.
        encoder: the towers to train. Where the config names no start, its own temperature is taken.
        augmentation: random changes of the training pictures.
        batch_size: rows of the global batch, on which it can depend where the loss starts.
        teacher: the model of ``config.teacher``. It is no part of this module: not among its parameters, not in its
            state, and so never trained nor saved.

    Attributes:
        logit_scale: ln(1/τ).
    """

    inputs: ClassVar[dict[str, str]] = {"image": "image", "text": "text"}

    start_temperature: ClassVar[float]
    """Where neither the config nor the model to start from names one."""

    config: ClipConfig | SiglipConfig

    def __init__(
        self,
        config: ClipConfig | SiglipConfig,
        encoder: Encoder,
        augmentation: Augmentation | None,
        *,
        batch_size: int,
        teacher: Encoder | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.augmentation = augmentation
        self.distilled: TeacherConfig | None = config.teacher
        if (teacher is None) != (self.distilled is None):
            raise ValueError("a teacher and its settings go together: give both config.teacher and teacher, or neither")
        object.__setattr__(self, "teacher", teacher)  # past nn.Module, which would make it a part
        if teacher is not None:
            teacher.eval().requires_grad_(False)
        start = _start(config.temperature, encoder, self.start_temperature)
        self.logit_scale = nn.Parameter(torch.tensor(start), requires_grad=config.learn_temperature)

    @property
    def temperature(self) -> Tensor:
        """τ = exp(-logit_scale)."""
        return (-self.logit_scale).exp()

    def learned_scale(self) -> tuple[float, float | None]:
        """``logit_scale`` and ``logit_bias`` as they stand, for the encoder to keep; no bias for a method without."""
        return self.logit_scale.item(), None

    def embed(self, batch: Batch) -> Views:
        image = batch.inputs["image"]
        if self.augmentation is not None and self.training and "pixels" in image:
            image = {"pixels": self.augmentation(image["pixels"], batch.seeds)}
        views = {
            "image": self.encoder.embedder("image")(**image),
            "text": self.encoder.embedder("text")(**batch.inputs["text"]),
            "ids": batch.ids,
        }
        if self.teacher is not None:
            # In full precision: a teacher's temperature magnifies what its features were rounded to.
            with torch.no_grad(), torch.autocast(batch.ids.device.type, enabled=False):
                for role, modality in self.inputs.items():
                    features = batch.inputs[f"teacher_{role}"]
                    views[f"teacher_{role}"] = self.teacher.embedder(modality)(**features)
        return views

    @abstractmethod
    def contrast(self, views: Views) -> Tensor:
        """The loss of the pairs alone."""

    def loss(self, views: Views) -> Loss:
        value = self.contrast(views)
        if self.distilled is None:
            return Loss(value)
        term = distillation(
            views["image"],
            views["text"],
            views["teacher_image"],
            views["teacher_text"],
            self.temperature,
            math.exp(-_start(self.distilled.temperature, self.teacher, TEACHER_TEMPERATURE)),
        )
        return Loss(value + self.distilled.weight * term, {"contrastive": value, "distillation": term})

    def metrics(self, views: Views) -> dict[str, float]:
        accuracy = batch_accuracy(views["image"], views["text"], ids=views["ids"])
        return {"accuracy": accuracy.item(), "temperature": self.temperature.item()}

    def _apply(self, *args: Any, **kwargs: Any) -> ImageText:
        # Underlies `.to(device)`: the teacher is no part of this module, but goes where it goes.
        if self.teacher is not None:
            self.teacher._apply(*args, **kwargs)
        return super()._apply(*args, **kwargs)


def _start(temperature: float | None, encoder: Encoder | None, otherwise: float) -> float:
    """ln(1/τ) of the temperature asked for, else of the encoder, else of ``otherwise``."""
    if temperature is not None:
        return -math.log(temperature)
    learned = None if encoder is None else encoder.logit_scale
    return -math.log(otherwise) if learned is None else learned
