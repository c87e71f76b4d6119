"""Spectral contrastive learning (HaoChen et al. 2021, arXiv:2106.04156)."""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmcl.config.methods import MethodConfig
from mmcl.data.batches.views import View
from mmcl.methods.base import Loss, Method


class SpectralConfig(MethodConfig):
    """One image tower, learned from two augmentations of each image by the spectral contrastive loss."""

    name: Literal["spectral"] = "spectral"
    weight: float = Field(default=1.0, gt=0.0)
    """Of the repulsion of different images."""


class Spectral(Method):
    """Two augmentations of an image agree, and embeddings of different images are orthogonal."""

    Config = SpectralConfig

    @classmethod
    def columns_of(cls, config):
        return {"image": "image"}

    def views(self):
        return {"image": View("image", "image", self.augment, count=2)}

    def embed(self, inputs):
        return {"image": self.encoder.embedder("image")(**inputs["image"])}

    def loss(self, outputs, step):
        views = outputs.embeddings["image"].unflatten(0, (-1, 2))  # (N, 2, D)
        return Loss(spectral(views[:, 0], views[:, 1], self.config.weight))


def spectral(a: Tensor, b: Tensor, weight: float = 1.0) -> Tensor:
    r"""The spectral contrastive loss of two views (N, D) of N images.

    .. math:: -\frac{2}{N} \sum_i a_i^\top b_i + \frac{w}{N (N - 1)} \sum_{i \neq j} (a_i^\top b_j)^2
    """
    similarity = F.normalize(a.float()) @ F.normalize(b.float()).T
    positive = similarity.diagonal()
    repulsion = similarity.square().sum() - positive.square().sum()
    return -2 * positive.mean() + weight * repulsion / (len(a) * (len(a) - 1))
