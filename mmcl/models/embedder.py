"""A tower and its head: from pictures or tokens to the shared space."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import cast

import torch
from torch import Tensor, nn

from mmcl.models.grouping import group_by_length
from mmcl.models.heads import Head
from mmcl.models.image_tower import ImageTower
from mmcl.models.text_tower import TextTower

TOKENS_A_GROUP = 2048  # at most: beyond, its activations fall out of the caches
COST_OF_A_GROUP = 48  # in tokens; each has a gradient of all weights
COST_WITH_TABLE = 192  # where each has one of the whole embedding table as well


class Embedder(nn.Module):
    """One tower, and the head that maps its features to the shared space.

    Its inputs are named: ``pixels`` for a picture; ``input_ids``, ``attention_mask`` (None or absent without padding)
    and where a prompt is left out of the pooling ``skipped`` for a text; or ``features``, the tower's own output
    computed earlier, for a frozen tower.

    Attributes:
        frozen: the whole tower keeps its weights.
        still: parts of the tower that stay in evaluation mode.
        in_groups: texts may pass through the tower in several groups. Not where each pass is a meeting of processes:
            theirs would differ in number, and wait for each other forever.
    """

    def __init__(self, tower: ImageTower | TextTower, head: Head, *, frozen: bool = False) -> None:
        super().__init__()
        self.tower = tower
        self.head = head
        self.frozen = frozen
        self.still: list[nn.Module] = []
        self.in_groups = True
        if frozen:
            self.tower.requires_grad_(False)
            self.tower.eval()

    def keep_still(self, modules: Iterable[nn.Module]) -> None:
        """Keep ``modules``, parts of a tower of which other parts learn, in evaluation mode from now on."""
        self.still.extend(modules)
        self.train(self.training)

    def train(self, mode: bool = True) -> Embedder:
        """What is frozen stays in evaluation mode: its dropout and its running statistics must not move."""
        super().train(mode)
        if self.frozen:
            self.tower.eval()
        for module in self.still:
            module.training = False
        return self

    def forward(self, **inputs: Tensor) -> Tensor:
        """(N, D) embeddings, not normalised."""
        if "features" in inputs:
            return self.head(inputs["features"])
        mask = inputs.get("attention_mask")
        if mask is not None and mask.device.type == "cpu" and self.in_groups:
            return self.head(self._by_length(**inputs))
        return self.head(self.tower(**inputs))

    def _by_length(self, input_ids: Tensor, attention_mask: Tensor, skipped: Tensor | None = None) -> Tensor:
        """The tower's features of texts taken in groups of similar length: most of a mixed batch would be padding.

        A GPU is better off with the whole batch at once.
        """
        lengths, order = attention_mask.sum(dim=1).sort(descending=True, stable=True)
        tower = cast(TextTower, self.tower)
        cost = COST_WITH_TABLE if tower.table_gradients else COST_OF_A_GROUP
        counts = lengths.clamp(min=1).tolist()
        cuts = group_by_length(counts, TOKENS_A_GROUP, cost)
        groups = [order[start:stop] for start, stop in cuts]
        tokens = [input_ids[order[start:stop], : counts[start]] for start, stop in cuts]
        embeddings = tower.look_up(tokens) if len(groups) > 1 else None
        features = []
        for group, ids, embedded in zip(groups, tokens, embeddings or repeat(None), strict=False):
            mask = attention_mask[group, : ids.shape[1]]
            options = {} if skipped is None else {"skipped": skipped[group]}
            options |= {} if embedded is None else {"embeddings": embedded}
            features.append(tower(ids, None if bool(mask.all()) else mask, **options))
        return torch.cat(features)[order.argsort()]
