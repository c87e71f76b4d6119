"""MoCo: a query finds its key among those of former images, made by a slow copy (He et al. 2020, arXiv:1911.05722; v2
Chen et al. 2020, arXiv:2003.04297)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmcl.config.methods import MethodConfig
from mmcl.data.batches.batch import Inputs
from mmcl.data.batches.views import View
from mmcl.losses import queue_info_nce
from mmcl.losses.logits.candidates import duplicate_mask
from mmcl.methods.base import Context, Loss
from mmcl.methods.image.image_only import ImageOnly, spread
from mmcl.methods.outputs import Outputs
from mmcl.methods.parts.heads import MlpConfig, mlp_head
from mmcl.methods.parts.momentum import MomentumCopy
from mmcl.methods.parts.queue import MemoryQueue
from mmcl.methods.parts.statistics_groups import embed_in_groups, embed_shuffled, has_batch_norm
from mmcl.methods.step import Step
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError


class MocoConfig(MethodConfig):
    """One image tower, learned against a queue of keys by its own slow copy (He et al. 2020, arXiv:1911.05722). The
    defaults are v2's (arXiv:2003.04297); v1 has `temperature: 0.07` and `projector: {hidden: []}`."""

    name: Literal["moco"] = "moco"
    temperature: Annotated[float, Field(ge=0.01, le=1.0)] = 0.2
    """Of InfoNCE."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """Decay of the copy, the same in all steps; small data sets do well with 0.99."""
    queue: int = Field(default=65536, ge=1)
    """Keys of former batches, which are the negatives, over all devices."""
    statistics_groups: int = Field(default=8, ge=1)
    """Groups of the global batch, each with its own statistics in the batch normalisation of the tower, as on the 8
    GPUs of the authors. A key is in another group than its query, so that these do not give it away."""
    projector: MlpConfig = Field(default_factory=lambda: MlpConfig(hidden=[2048], dim=128, norm="none"))
    """The head between the embeddings and the loss, of which the copy has one as well."""


class Moco(ImageOnly):
    """InfoNCE of a query, its positive key and the keys of a queue."""

    Config = MocoConfig
    config: MocoConfig
    fractions: ClassVar[Mapping[str, str]] = {"accuracy": "Accuracy within the queue"}

    def __init__(self, config: MocoConfig, encoder: Towers, context: Context) -> None:
        super().__init__(config, encoder, context)
        self.rows = context.batch_size // config.statistics_groups
        if self.rows < 2 and has_batch_norm(encoder):
            raise MmclError(
                f"method.statistics_groups: {config.statistics_groups} groups of training.batch_size "
                f"{context.batch_size} have too few rows for batch normalisation; lower the one or raise the other"
            )
        projector = self.add_head("projector", lambda: mlp_head(config.projector, encoder.width))
        parts = {"image": encoder.embedder("image"), "projector": projector}
        self.momentum = MomentumCopy(parts, config.momentum, statistics="batch")
        self.queue = MemoryQueue(config.queue, {"key": config.projector.dim}, columns=1)
        self._push(torch.randn(config.queue, config.projector.dim), torch.full((config.queue, 1), -1))  # as the authors

    @property
    def negatives_per_query(self) -> int:
        return self.config.queue

    def compared_with(self, extra: int = 0) -> str:
        return f"{self.config.queue:,} queued negatives per query"

    def views(self) -> dict[str, View]:
        return {name: View("image", "image", self.augment) for name in ("query", "key")}

    def embed(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        return {"query": embed_in_groups(self.encoder.embedder("image"), inputs["query"]["pixels"], self.rows)}

    def embed_keys(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        if not self.training:
            return {}
        return {"key": embed_shuffled(self.momentum.parts["image"], inputs["key"]["pixels"], self.rows)}

    def project(self, outputs: Outputs) -> Outputs:
        queries = {"query": self.heads["projector"](outputs.embeddings["query"])}
        keys = {name: self.momentum("projector", vectors) for name, vectors in outputs.keys.items()}
        return replace(outputs, embeddings=queries, keys=keys)

    def loss(self, outputs: Outputs, step: Step) -> Loss:
        query, key, stored = outputs.embeddings["query"], outputs.keys["key"], self.queue.contents()
        ids, stored_ids = outputs.rows.ids, stored["ids"]
        return Loss(queue_info_nce(query, key, stored["key"], self.config.temperature, ids=ids, queue_ids=stored_ids))

    def metrics(self, outputs: Outputs) -> dict[str, float]:
        """Share of the queries whose positive is nearer than all keys of the queue; and the spread of the queries."""
        query, key, stored = outputs.embeddings["query"], outputs.keys["key"], self.queue.contents()
        query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
        others = (query @ stored["key"].to(query).T).masked_fill(duplicate_mask(outputs.rows.ids, stored["ids"]), -1.0)
        nearest = (query * key).sum(dim=1) > others.amax(dim=1)
        return {"accuracy": nearest.float().mean().item(), "spread": spread(query)}

    def after_update(self, outputs: Outputs, step: Step) -> None:
        self._push(outputs.keys["key"], outputs.rows.ids)
        self.momentum.update()

    def _push(self, keys: Tensor, ids: Tensor) -> None:
        self.queue.push({"key": F.normalize(keys, dim=1), "ids": ids})
