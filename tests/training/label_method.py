"""A method of another package that learns from labels: SupCon without a head (Khosla et al. 2020, arXiv:2004.11362)."""

from __future__ import annotations

from typing import Literal

import torch

from mmcl.config.methods import MethodConfig
from mmcl.losses.logits.similarity import unit_length
from mmcl.methods.base import Loss, refuse_unknown_roles
from mmcl.methods.image.image_only import ImageOnly


class LabelledConfig(MethodConfig):
    """Images of the same label are each other's positives."""

    name: Literal["labelled"] = "labelled"
    temperature: float = 0.2
    """Of the softmax over all other views."""


class Labelled(ImageOnly):
    """Equation 2 of the paper over both views of the global batch."""

    Config = LabelledConfig

    @classmethod
    def columns_of(cls, config):
        columns = {"image": "image", "label": "label"}
        refuse_unknown_roles(config, columns)
        return columns

    def loss(self, outputs, step):
        views = unit_length(outputs.embeddings["image"])  # (2N, D), both of the first row before those of the next
        labels = outputs.rows.labels["label"].repeat_interleave(2)
        itself = torch.eye(len(views), dtype=torch.bool)
        logits = (views @ views.T / self.config.temperature).masked_fill(itself, -torch.inf)
        positive = (labels[:, None] == labels) & ~itself
        log_probability = logits - logits.logsumexp(dim=1, keepdim=True)
        return Loss(-(log_probability.masked_fill(~positive, 0).sum(dim=1) / positive.sum(dim=1)).mean())
