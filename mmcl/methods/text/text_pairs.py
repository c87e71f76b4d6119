"""What the methods over pairs of texts share: one tower, a head for training, masked tokens besides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mmcl.config.methods import MethodConfig
from mmcl.config.model import HeadConfig
from mmcl.data.batches.batch import Inputs
from mmcl.data.batches.views import View
from mmcl.methods.base import Context
from mmcl.methods.outputs import Outputs
from mmcl.methods.paired import Paired
from mmcl.methods.parts.masked_language import MaskedLanguage, MlmConfig
from mmcl.methods.parts.matryoshka import MatryoshkaConfig
from mmcl.models.heads import Head
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError

PAIR = {"anchor": "text", "positive": "text"}
MASKED = "masked {}"  # view of a column's texts in which tokens are hidden


class TextPairsConfig(MethodConfig):
    """Settings of every method over pairs of texts."""

    temperature: Annotated[float, Field(ge=0.01, le=1.0)] | None = None
    """Temperature at the start; that of the model to start from if absent, and 0.05 if there is none."""
    learn_temperature: bool = False
    """Learn the temperature; it stays at least 0.01."""
    training_head: bool = False
    """A dense layer and tanh between the embeddings and the loss, in training only: the SimCSE paper's MLP. The model
    folder keeps it, apart from what embeds."""
    mlm: MlmConfig | None = None
    """Predict masked tokens besides."""
    matryoshka: MatryoshkaConfig | None = None
    """Compute the loss of the first dimensions as well."""


class TextPairs(Paired):
    """Pairs of texts, ``anchor`` and ``positive``, through one tower; a subclass says by which loss.

    Attributes:
        masked_language: predicts hidden tokens besides, if the config says so.
    """

    start_temperature: ClassVar[float] = 0.05

    config: TextPairsConfig

    def __init__(self, config: TextPairsConfig, encoder: Towers, context: Context) -> None:
        super().__init__(config, encoder, context)
        if config.training_head and config.matryoshka:
            raise MmclError(
                "method.matryoshka: the first dimensions of what the training head gives are not those of the vectors; "
                "leave it or method.training_head out"
            )
        if config.training_head:
            self.add_head("projector", lambda: Head(HeadConfig(kind="tanh"), encoder.width, encoder.width))
        mlm = config.mlm
        self.masked_language = MaskedLanguage(encoder.text(), mlm.probability) if mlm else None

    @property
    def sides(self) -> tuple[str, str]:
        return "anchor", "positive"

    @property
    def texts(self) -> list[str]:
        """The columns of texts."""
        return [column for column, modality in self.columns.items() if modality == "text"]

    def text_views(self) -> dict[str, View]:
        """The views that are compared."""
        return {column: View(column, "text") for column in self.texts}

    def views(self) -> dict[str, View]:
        views = self.text_views()
        if self.masked_language is not None and self.training:
            shown = {
                column: next(name for name, view in views.items() if view.column == column) for column in self.texts
            }
            for number, column in enumerate(self.texts):
                hide = self.masked_language.hiding(number)
                views[MASKED.format(column)] = View(column, "text", hide, draw_of=shown[column])
        return views

    @property
    def separate(self) -> tuple[str, ...]:
        """Anchors: where these are questions, to pad them to the length of the answers would cost most."""
        return ("anchor",)

    @property
    def learning(self) -> tuple[str, ...]:
        """The embeddings that gradient flows to."""
        return self.embedding_names

    def embed(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        embeddings: dict[str, Tensor] = {}
        for texts in self.passes(inputs):
            learning = {name: of for name, of in texts.items() if name in self.learning}
            embeddings |= self.embed_together(self.encoder.embedder("text"), learning)
        if self.masked_language is not None and self.training:
            tower = self.encoder.text().tower
            hidden = [inputs[name] for name in map(MASKED.format, self.columns) if name in inputs]
            embeddings["mlm"] = torch.stack([self.masked_language(tower, **texts) for texts in hidden]).sum(dim=0)
        return embeddings

    def passes(self, inputs: Mapping[str, Inputs]) -> list[dict[str, Inputs]]:
        """The texts of each pass through the tower."""
        names = [name for name in self.embedding_names if name in inputs]
        passes = [[name] for name in self.separate] + [[name for name in names if name not in self.separate]]
        return [{name: inputs[name] for name in each} for each in passes]

    def project(self, outputs: Outputs) -> Outputs:
        """The embeddings through the projector, if there is one: every process holds all of its parameters, however the
        towers are spread."""
        if not (self.heads and self.training):
            return outputs
        names = [name for name in self.embedding_names if name in outputs.embeddings]
        projected = {name: self.heads["projector"](outputs.embeddings[name]) for name in names}
        keys = outputs.keys
        if self.momentum is not None:
            keys = {name: self.momentum("projector", vectors) for name, vectors in keys.items()}
        return replace(outputs, embeddings=outputs.embeddings | projected, keys=keys)

    def added_terms(self, outputs: Outputs) -> dict[str, tuple[float, Tensor]]:
        terms = super().added_terms(outputs)
        if "mlm" in outputs.embeddings and self.config.mlm is not None:
            total, count = self.gathered({"mlm": outputs.embeddings["mlm"]})["mlm"].sum(dim=0)
            terms["mlm"] = (self.config.mlm.weight, total / count.clamp(min=1))
        return terms
