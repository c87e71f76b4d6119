"""The contract between a method and everything else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from mmcl.models.encoder import Encoder

Views: TypeAlias = dict[str, Tensor]
"""View name to (N, D) embeddings; beside them whatever the loss needs of the rows, such as ``ids`` or a label.

Every tensor has N rows, so that gathering views over devices needs to know nothing about them.
"""


@dataclass
class Batch:
    """N rows on their way through a method.

    Attributes:
        inputs: role (``image``, ``text``, …) to the named inputs of an embedder: ``pixels`` uint8 (N, S, S, 3);
            ``input_ids`` and ``attention_mask`` (N, L); or ``features`` (N, F) of a frozen tower.
        ids: (N, K) int64: two rows that agree in any column are the same thing, and not each other's negatives.
        seeds: (N,) int64, one a row and epoch: from them alone a method draws its random numbers for augmentation.
        rows: (N,) int64 positions in the source.
    """

    inputs: dict[str, dict[str, Tensor]]
    ids: Tensor
    seeds: Tensor
    rows: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        moved = {
            role: {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
            for role, tensors in self.inputs.items()
        }
        return Batch(moved, self.ids.to(device), self.seeds.to(device), self.rows)


@dataclass
class Loss:
    """A scalar to minimise, and the parts it is made of where a method has several."""

    value: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class Method(nn.Module, ABC):
    """How rows become views, views become embeddings, and embeddings become a loss.

    ``loss`` sees embeddings only, never a model input, and it sees the *global* batch; so gradient caching and
    negatives from other devices are written once, outside, for every method.
    """

    inputs: ClassVar[dict[str, str]]
    """Role to modality (``image``, ``text``) of the columns that the method reads."""

    encoder: Encoder

    @abstractmethod
    def embed(self, batch: Batch) -> Views:
        """The views of a batch; this is where gradient flows."""

    @abstractmethod
    def loss(self, views: Views) -> Loss:
        """The loss of the global batch."""

    def metrics(self, views: Views) -> dict[str, float]:
        """Numbers worth a line in the log, computed without gradient at logged steps only; none by default."""
        return {}

    def after_step(self) -> None:
        """What changes after an optimizer step besides the weights (momentum copies, queues); nothing by default."""

    def forward(self, batch: Batch) -> Views:
        """``embed`` under the name by which data parallelism wraps a module."""
        return self.embed(batch)
