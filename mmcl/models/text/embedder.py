"""What turns texts into vectors of the shared space."""

from __future__ import annotations

from itertools import repeat
from typing import ClassVar

import torch
from torch import Tensor

from mmcl.data.batches.inputs import take_rows, token_counts
from mmcl.data.processors.text import TextProcessor
from mmcl.models.embedder import Embedder
from mmcl.models.heads import Head
from mmcl.models.text.grouping import equal_lengths, group_by_length
from mmcl.models.text.packed_features import packed_features, trains_packed
from mmcl.models.text.tower import TextTower

TOKENS_A_GROUP = 2048  # at most: beyond, its activations fall out of the caches
COST_OF_A_GROUP = 48  # in tokens; each has a gradient of all weights
COST_WITH_TABLE = 192  # where each has one of the whole embedding table as well


class TextEmbedder(Embedder):
    """Embeds texts: ``input_ids``, ``attention_mask`` and ``skipped``, see :mod:`mmcl.data.batches.inputs`."""

    modality: ClassVar[str] = "text"
    processor: TextProcessor
    tower: TextTower

    def __init__(self, processor: TextProcessor, tower: TextTower, head: Head, *, frozen: bool = False) -> None:
        super().__init__(processor, tower, head, frozen=frozen)

    def _features(self, **inputs: Tensor) -> Tensor:
        """(N, width): what the tower gives, of texts end to end, or else in groups of similar length, where it can."""
        mask = inputs.get("attention_mask")
        ids = inputs["input_ids"]
        if self.in_groups and ids.device.type == "cpu" and ids.numel() and trains_packed(self.tower):
            return self._packed(**inputs)
        if mask is not None and self.in_groups and (mask.device.type == "cpu" or self.tower.padding.mixes):
            return self._by_length(**inputs)
        return super()._features(**inputs)

    def _packed(self, **texts: Tensor) -> Tensor:
        """The tower's features of texts that pass through it end to end, those with most tokens first."""
        lengths, order = token_counts(texts).sort(descending=True, stable=True)
        features = packed_features(self.tower, lengths.clamp(min=1).tolist(), **take_rows(texts, order))
        return features[order.argsort()]

    def _by_length(self, **texts: Tensor) -> Tensor:
        """The tower's features of texts taken in groups of similar length: most of a mixed batch would be padding.

        A GPU is better off with the whole batch at once, unless padding would change what a text gives.
        """
        lengths, order = token_counts(texts).sort(descending=True, stable=True)
        cost = COST_WITH_TABLE if self.tower.table_gradients else COST_OF_A_GROUP
        most = lengths.clamp(min=1).tolist()
        mixes = self.tower.padding.mixes
        cuts = equal_lengths(most) if mixes else group_by_length(most, TOKENS_A_GROUP, cost)
        groups = [take_rows(texts, order[start:stop]) for start, stop in cuts]
        embeddings = self.tower.embed_tokens([group["input_ids"] for group in groups]) if len(groups) > 1 else None
        features = []
        for group, embedded in zip(groups, embeddings or repeat(None), strict=False):
            if bool(group["attention_mask"].all()):
                del group["attention_mask"]
            options = {} if embedded is None else {"embeddings": embedded}
            features.append(self.tower(**group, **options))
        return torch.cat(features)[order.argsort()]
