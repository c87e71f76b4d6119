"""SwAV: each crop predicts the cluster of the others (Caron et al. 2020, arXiv:2006.09882)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmcl.config.section import Positive
from mmcl.losses import sinkhorn, swapped_prediction
from mmcl.methods.base import Context, Loss
from mmcl.methods.image.image_only import by_view, spread
from mmcl.methods.image.multi_crop import GLOBAL, MultiCrop, MultiCropConfig, all_together, warn_of_frozen
from mmcl.methods.outputs import Outputs
from mmcl.methods.parts.heads import MlpConfig, mlp_head
from mmcl.methods.parts.queue import MemoryQueue, require_start
from mmcl.methods.step import Step
from mmcl.models.heads import Prototypes
from mmcl.models.towers import Towers

CROPS = ("first", "second")  # the two global ones


class SwavConfig(MultiCropConfig):
    """One image tower, learned by clustering crops of an image alike (Caron et al. 2020, arXiv:2006.09882)."""

    name: Literal["swav"] = "swav"
    temperature: Annotated[float, Field(ge=0.01, le=1.0)] = 0.1
    """Of the predictions."""
    prototypes: int = Field(default=3000, ge=2)
    """Clusters."""
    epsilon: Positive = 0.05
    """Smoothness of the assignments."""
    iterations: int = Field(default=3, ge=1)
    """Of Sinkhorn's algorithm."""
    queue: int = Field(default=0, ge=0)
    """Former rows that take part in the assignments, for batches much smaller than the prototypes are many."""
    queue_start: int = Field(default=0, ge=0)
    """Optimizer steps before they do."""
    freeze_prototypes: int = Field(default=300, ge=0)
    """Optimizer steps at the start in which the prototypes stay as they are."""
    projector: MlpConfig = Field(default_factory=MlpConfig)
    """The head between the embeddings and the prototypes."""


class Swav(MultiCrop):
    """Swapped prediction of the assignments of two global crops from all other crops."""

    Config = SwavConfig
    config: SwavConfig

    def __init__(self, config: SwavConfig, encoder: Towers, context: Context) -> None:
        super().__init__(config, encoder, context)
        self.add_head("projector", lambda: mlp_head(config.projector, encoder.width))
        self.add_head("prototypes", lambda: Prototypes(config.projector.dim, config.prototypes))
        dims = dict.fromkeys(CROPS, config.projector.dim)
        self.queue = MemoryQueue(config.queue, dims, columns=1, start=config.queue_start) if config.queue else None

    @property
    def prototypes(self) -> Prototypes:
        """The cluster centres."""
        return cast(Prototypes, self.heads["prototypes"])

    def project(self, outputs: Outputs) -> Outputs:
        projections = all_together(self.heads["projector"], outputs.embeddings)
        return replace(outputs, embeddings={name: F.normalize(of, dim=1) for name, of in projections.items()})

    def loss(self, outputs: Outputs, step: Step) -> Loss:
        scores = self.prototypes(self.crops(outputs.embeddings))  # (V, N, K), the global ones first
        return Loss(swapped_prediction(scores, self._assignments(scores[:2].detach()), self.config.temperature))

    @torch.no_grad()
    def _assignments(self, scores: Tensor) -> Tensor:
        """(2, N, K) of the global crops, among those that the queue holds."""
        stored = self.queue.contents() if self.queue is not None else {}
        known = [scores]
        if stored:
            known.append(self.prototypes(torch.stack([stored[crop] for crop in CROPS])))
        assigned = sinkhorn(torch.cat(known, dim=1), self.config.iterations, self.config.epsilon)
        return assigned[:, : scores.shape[1]]

    def metrics(self, outputs: Outputs) -> dict[str, float]:
        """The spread of the projections, near 0 when all have become one point and near 1 when they fill the sphere."""
        return {"spread": spread(outputs.embeddings[GLOBAL])}

    def require_steps(self, steps: int) -> None:
        warn_of_frozen(self.config.freeze_prototypes, steps)
        if self.queue is not None:
            require_start(self.queue, steps, "method.queue_start")

    def before_update(self, step: Step) -> None:
        if step.number < self.config.freeze_prototypes:
            self.prototypes.weight.grad = None

    def after_update(self, outputs: Outputs, step: Step) -> None:
        self.prototypes.normalise()
        if self.queue is not None:
            vectors = by_view(outputs.embeddings[GLOBAL])
            self.queue.push(dict(zip(CROPS, vectors, strict=True)) | {"ids": outputs.rows.ids})
