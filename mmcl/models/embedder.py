"""What turns raw inputs into vectors of the shared space: a processor, a tower and a head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmcl.data.processors.image import ImageProcessor
from mmcl.data.processors.table import TableProcessor
from mmcl.data.processors.text import TextProcessor
from mmcl.models.heads import Head
from mmcl.models.tower import Tower


class Embedder(nn.Module):
    """One tower, the processor that makes its inputs, and the head that maps its features to the shared space.

    Of each modality there is a class, which says what ``processor`` and ``tower`` are. Its inputs are named, see
    :mod:`mmcl.data.batches.inputs`; or they are ``features``, the tower's own output computed earlier, for a frozen
    tower.

    Attributes:
        modality: what it embeds.
        processor: from raw inputs to the tower's; no network.
        frozen: the whole tower keeps its weights.
        in_eval: parts of the tower that stay in evaluation mode.
        in_groups: inputs may pass through the tower in several groups. Not where each pass is a meeting of processes:
            theirs would differ in number, and wait for each other forever.
        in_float32: it computes in float32 where autocast has chosen another type for what is around it.
    """

    modality: ClassVar[str]
    processor: ImageProcessor | TextProcessor | TableProcessor
    tower: Tower

    def __init__(
        self,
        processor: ImageProcessor | TextProcessor | TableProcessor,
        tower: Tower,
        head: Head,
        *,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.processor = processor
        self.tower = tower
        self.head = head
        self.frozen = frozen
        self.in_eval: list[nn.Module] = []
        self.in_groups = True
        self.in_float32 = False
        if frozen:
            self.tower.requires_grad_(False)
            self.tower.eval()

    def keep_in_eval(self, modules: Iterable[nn.Module]) -> None:
        """Keep ``modules``, parts of a tower of which other parts learn, in evaluation mode from now on."""
        self.in_eval.extend(modules)
        self.train(self.training)

    def train(self, mode: bool = True) -> Embedder:
        """What is frozen stays in evaluation mode: its dropout and its running statistics must not move."""
        super().train(mode)
        if self.frozen:
            self.tower.eval()
        for module in self.in_eval:
            module.training = False
        return self

    def forward(self, **inputs: Tensor) -> Tensor:
        """(N, D) embeddings, not normalised."""
        with self._precision(inputs):
            return self.head(inputs["features"] if "features" in inputs else self._features(**inputs))

    def features(self, **inputs: Tensor) -> Tensor:
        """(N, width): what the tower gives."""
        with self._precision(inputs):
            return self._features(**inputs)

    def _features(self, **inputs: Tensor) -> Tensor:
        features: Tensor = self.tower(**inputs)
        return features

    def _precision(self, inputs: Mapping[str, Tensor]) -> AbstractContextManager[object]:
        if not self.in_float32:
            return nullcontext()
        return torch.autocast(next(iter(inputs.values())).device.type, enabled=False)


def embedders(module: nn.Module) -> dict[str, Embedder]:
    """All embedders in ``module``, by their path."""
    return {path: part for path, part in module.named_modules() if isinstance(part, Embedder)}
