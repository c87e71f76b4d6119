"""CLIP: image and text towers under a symmetric InfoNCE loss (Radford et al. 2021, arXiv:2103.00020)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmcl.config import schema
from mmcl.config.methods import MethodConfig
from mmcl.data.batches.batch import MINED, Inputs
from mmcl.data.batches.views import Extra, View
from mmcl.losses import Blockwise, Positives, info_nce
from mmcl.methods.base import Context, roles_named
from mmcl.methods.image_text.image_text import ImageText
from mmcl.methods.paired import NEGATIVE, Compared, NegativeGroup, as_negatives, hard_group
from mmcl.methods.parts.matryoshka import MatryoshkaConfig
from mmcl.methods.parts.queue import QueueConfig
from mmcl.methods.parts.references import TeacherConfig
from mmcl.models.towers import Towers

NEGATIVES = "negatives"  # extra texts
LABEL = "label"


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
    """Extra captions, drawn anew for every batch from all training rows, as negatives of every image. Nearly free
    where the text tower is frozen; more than there are takes them all."""
    queue: QueueConfig | None = None
    """Images of former batches as negatives of every text, and texts of former batches as negatives of every image."""
    teacher: TeacherConfig | None = None
    """Learn the similarities of another model besides."""
    matryoshka: MatryoshkaConfig | None = None
    """Compute the loss of the first dimensions as well."""


class Clip(ImageText):
    """Symmetric InfoNCE between images and texts.

    Where rows have a label, all texts of a label are positives of each of its images, and the other way round. The
    columns ``negative``, ``negative_2``, … are hard negatives, texts that are wrong for every image.
    """

    Config: ClassVar[type[MethodConfig]] = ClipConfig
    config: ClipConfig
    start_temperature: ClassVar[float] = 0.07

    def __init__(self, config: ClipConfig, encoder: Towers, context: Context) -> None:
        self.negatives = [role for role in [*context.columns][2:] if NEGATIVE.fullmatch(role)]
        super().__init__(config, encoder, context)
        if config.queue is not None:
            self.make_queue(config.queue, self.sides, {side: encoder.embedder(side) for side in self.sides})

    @classmethod
    def labels_of(cls, config: schema.Config) -> dict[str, str]:
        return {LABEL: "label"} if config.data.explode or LABEL in roles_named(config) else {}

    @classmethod
    def negatives_of(cls, config: schema.Config) -> list[str]:
        named = filter(NEGATIVE.fullmatch, set(roles_named(config)) - config.model.towers.keys())
        return sorted(named, key=lambda role: (len(role), role))

    def views(self) -> dict[str, View]:
        return super().views() | {role: View(role, self.sides[1]) for role in self.negatives}

    @property
    def optional(self) -> frozenset[str]:
        """Hard negatives: a row without them has those of the batch alone."""
        return frozenset(self.negatives)

    @property
    def extra(self) -> dict[str, Extra]:
        """Extra texts, as negatives of every image."""
        return {NEGATIVES: Extra(self.sides[1], self.config.extra_texts)} if self.config.extra_texts else {}

    def compared_with(self, extra: int = 0) -> str:
        words = super().compared_with(extra)
        return f"at most {words}, positives where the label is the same" if LABEL in self.columns else words

    @property
    def mining_roles(self) -> tuple[str, str]:
        """Hard captions of an image."""
        return self.sides

    @property
    def embedding_names(self) -> tuple[str, ...]:
        return (*self.sides, *self.negatives, NEGATIVES, MINED)

    def embed(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        image, text = self.sides
        embeddings = {image: self.encoder.embedder(image)(**inputs[image])}
        if self.key_embedder is not None:
            return embeddings | {text: self.encoder.embedder(text)(**inputs[text])}
        return embeddings | self.embed_together(self.encoder.embedder(text), self._texts(inputs), text)

    def embed_keys(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        if self.key_embedder is None:
            return {}
        image, text = self.sides
        keys = {image: self.key_embedder(image, **inputs[image])}
        return keys | self.embed_together(partial(self.key_embedder, text), self._texts(inputs), text)

    def _texts(self, inputs: Mapping[str, Inputs]) -> dict[str, Inputs]:
        return {name: inputs[name] for name in (self.sides[1], *self.negatives, NEGATIVES, MINED) if name in inputs}

    def contrast(self, compared: Compared) -> Tensor:
        return self.both_directions(self._info_nce, compared, symmetric=True)

    def _info_nce(self, compared: Compared, query: str, key: str, *, symmetric: bool) -> Tensor:
        """InfoNCE from ``query`` to ``key``; texts without an image are candidates of images alone."""
        outputs = compared.outputs
        ids = self.identities(outputs.rows)
        groups = self._groups(compared, ids) if key == self.sides[1] else []
        if key in compared.stored and compared.stored_ids is not None:
            groups.append(NegativeGroup(compared.stored[key], compared.stored_ids))
        return info_nce(
            outputs.embeddings[query],
            compared.key(key),
            self.temperature,
            ids=ids,
            positives=Positives(outputs.rows.labels[LABEL]) if LABEL in outputs.rows.labels else None,
            negatives=as_negatives(groups),
            symmetric=symmetric,
            label_smoothing=self.config.label_smoothing,
            blockwise=Blockwise(across=self.across),
        )

    def _groups(self, compared: Compared, ids: Tensor) -> list[NegativeGroup]:
        """Texts without an image: hard negatives of the rows, extra ones, mined ones."""
        rows, first = compared.outputs.rows, len(self.sides)
        last = first + len(self.negatives)
        groups = [
            hard_group(compared.key(name), rows.ids[:, number], ids)
            for number, name in enumerate(self.negatives, start=first)
        ]
        for name in (NEGATIVES, MINED):
            if name in rows.extra_ids:
                of = rows.extra_ids[name]
                groups.append(NegativeGroup(compared.key(name), torch.cat([of[:, :first], of[:, last:]], dim=1)))
        return groups
