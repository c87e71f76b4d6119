"""The contract between a method and everything else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from mmcl.models.encoder import Encoder

Views: TypeAlias = dict[str, Tensor]
"""View name to (N, D) embeddings; beside them whatever the loss needs of the rows, such as ``ids`` or a label.

Every tensor is gathered over devices along its first dimension, which needs to know nothing else about it.
"""


@dataclass
class Batch:
    """N rows on their way through a method.

    Attributes:
        inputs: role (``image``, ``text``, …) to the named inputs of an embedder: ``pixels`` uint8 (N, S, S, 3);
            ``input_ids`` and ``attention_mask`` (N, L); or ``features`` (N, F) of a frozen tower.
        ids: (N, K) int64: two rows that agree in any column are the same thing, and not each other's negatives.
        seeds: (N,) int64, one a row and epoch: from them alone a method draws its random numbers for augmentation.
        rows: (N,) int64 positions in the source; numbers in the order of reading, for a stream.
        extra: role to the named inputs of further items, no partners of any row, where a method asks for them.
        extra_ids: role to their identities, (M, K) int64 as in ``ids``.
        names: for a stream, what each row is called in messages: its shard and key.
        position: for a stream, where it stands after this batch, in values that JSON can hold.
        problems: for a stream, the samples that were skipped on the way to this batch, each with id, role and reason.
    """

    inputs: dict[str, dict[str, Tensor]]
    ids: Tensor
    seeds: Tensor
    rows: Tensor
    extra: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    extra_ids: dict[str, Tensor] = field(default_factory=dict)
    names: list[str] | None = None
    position: Any = None
    problems: list[dict[str, str]] = field(default_factory=list)

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""

        def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

        return Batch(
            {role: moved(tensors) for role, tensors in self.inputs.items()},
            self.ids.to(device),
            self.seeds.to(device),
            self.rows,
            {role: moved(tensors) for role, tensors in self.extra.items()},
            moved(self.extra_ids),
            self.names,
            self.position,
            self.problems,
        )


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
    teacher: Encoder | None = None
    """A model whose features of the same rows stand in ``Batch.inputs`` as ``teacher_image`` and so on."""

    @property
    def extra(self) -> dict[str, int]:
        """Role to the number of further items wanted beside every global batch; none by default."""
        return {}

    @abstractmethod
    def embed(self, batch: Batch) -> Views:
        """The views of a batch; this is where gradient flows."""

    @abstractmethod
    def loss(self, views: Views) -> Loss:
        """The loss of the global batch."""

    def metrics(self, views: Views) -> dict[str, float]:
        """Numbers worth a line in the log, computed without gradient at logged steps only; none by default."""
        return {}

    def learned_scale(self) -> tuple[float | None, float | None]:
        """The scale ln(1/τ) and the bias that belong to the embeddings, for the encoder to keep; none by default."""
        return None, None

    def after_step(self) -> None:
        """What changes after an optimizer step besides the weights (momentum copies, queues); nothing by default."""

    def forward(self, batch: Batch) -> Views:
        """``embed`` under the name by which data parallelism wraps a module."""
        return self.embed(batch)
