"""CLIP: image and text towers under a symmetric InfoNCE loss (Radford et al. 2021, arXiv:2103.00020)."""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar, Literal, Unpack

import torch
from pydantic import Field
from torch import Tensor

from mmcl.config.methods import MethodConfig
from mmcl.data.batches.batch import MINED, Batch
from mmcl.losses import Blockwise, Negatives, info_nce
from mmcl.methods.base import Setting, Views
from mmcl.methods.image_text import ImageText
from mmcl.methods.paired import key_of
from mmcl.methods.parts.matryoshka import MatryoshkaConfig
from mmcl.methods.parts.queue import QueueConfig
from mmcl.methods.parts.references import TeacherConfig
from mmcl.models.towers import Towers

FURTHER = {"text": "negatives", MINED: MINED}  # role of captions without a picture to the view of them
IDS = {"negatives": "negative_ids", MINED: f"{MINED}_ids"}  # such a view to that of their identities


class ClipConfig(MethodConfig):
    """Image and text towers under a symmetric InfoNCE loss (Radford et al. 2021, arXiv:2103.00020)."""

    name: Literal["clip"] = "clip"
    temperature: Annotated[float, Field(ge=0.01, le=1.0)] | None = None
    """Temperature at the start; that of the model to start from if absent, and 0.07 if there is none."""
    learn_temperature: bool = True
    """Learn the temperature; it stays at least 0.01."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the target spread evenly over all candidates."""
    extra_texts: int = Field(default=0, ge=0)
    """Further captions, drawn anew for every batch from all training rows, as negatives of every picture. Nearly free
    where the text tower is frozen; more than there are takes them all."""
    queue: QueueConfig | None = None
    """Pictures of past batches as negatives of every text, and texts of past batches as negatives of every picture."""
    teacher: TeacherConfig | None = None
    """Learn the similarities of another model besides."""
    matryoshka: MatryoshkaConfig | None = None
    """Compute the loss of the first dimensions as well."""


class Clip(ImageText):
    """Each picture is told from the batch by its text, and each text by its picture."""

    Config = ClipConfig
    config: ClipConfig
    start_temperature: ClassVar[float] = 0.07

    def __init__(self, config: ClipConfig, encoder: Towers, **setting: Unpack[Setting]) -> None:
        super().__init__(config, encoder, **setting)
        if config.queue is not None:
            self.keep_past(config.queue, self.sides, {side: encoder.embedder(side) for side in self.sides})

    @property
    def extra(self) -> dict[str, int]:
        """Further captions, as negatives of every picture."""
        return {"text": self.config.extra_texts} if self.config.extra_texts else {}

    @property
    def minable(self) -> tuple[str, str]:
        """Hard captions of a picture."""
        return self.sides

    @property
    def compared(self) -> tuple[str, ...]:
        return (*super().compared, "negatives", MINED)

    def embed(self, batch: Batch) -> Views:
        further = {role: view for role, view in FURTHER.items() if role in batch.extra}
        texts = {"text": batch.inputs["text"]} | {view: batch.extra[role] for role, view in further.items()}
        pictures = self.pictures(batch)
        image, text = (self.encoder.embedder(side) for side in self.sides)
        views: Views = {"image": image(**pictures)}
        if self.key_embedder is None:
            views |= self.embed_together(text, texts)
        else:
            views["text"] = text(**texts["text"])
            keys = self.embed_together(partial(self.key_embedder, "text"), texts)
            views |= {"key_image": self.key_embedder("image", **pictures), "key_text": keys.pop("text"), **keys}
        ids = {IDS[view]: batch.extra_ids[role] for role, view in further.items()}
        return views | ids | {"ids": batch.ids} | self.embed_references(batch)

    def contrast(self, views: Views) -> Tensor:
        return self._both_ways(self._tell_apart, views, symmetric=True)

    def _tell_apart(self, views: Views, query: str, key: str, *, symmetric: bool) -> Tensor:
        """Each ``query`` from the batch by its ``key``; captions without a picture are candidates of pictures alone."""
        sources = {f"past_{key}": "past_ids"}
        if key == "text":
            sources = IDS | sources
        further = [name for name in sources if name in views]
        negatives = None
        if further:
            ids = torch.cat([views[sources[name]] for name in further])
            negatives = Negatives(torch.cat([views[name] for name in further]), ids)
        return info_nce(
            views[query],
            key_of(views, key),
            self.temperature,
            ids=views["ids"],
            negatives=negatives,
            symmetric=symmetric,
            label_smoothing=self.config.label_smoothing,
            blockwise=Blockwise(across=self.across),
        )
