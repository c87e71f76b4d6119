"""A tower and its head: from pixels or tokens to the shared space."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import cast

import torch
from torch import Tensor, nn

from mmcl.data.batches.inputs import take_rows, token_counts
from mmcl.models.heads import Head
from mmcl.models.image.tower import ImageTower
from mmcl.models.text.grouping import equal_lengths, group_by_length
from mmcl.models.text.tower import TextTower

TOKENS_A_GROUP = 2048  # at most: beyond, its activations fall out of the caches
COST_OF_A_GROUP = 48  # in tokens; each has a gradient of all weights
COST_WITH_TABLE = 192  # where each has one of the whole embedding table as well


class Embedder(nn.Module):
    """One tower, and the head that maps its features to the shared space.

    Its inputs are named: ``pixels`` for an image; ``input_ids``, ``attention_mask`` and ``skipped`` for a text, see
    :mod:`mmcl.data.batches.inputs`; or ``features``, the tower's own output computed earlier, for a frozen tower.

    Attributes:
        frozen: the whole tower keeps its weights.
        in_eval: parts of the tower that stay in evaluation mode.
        in_groups: texts may pass through the tower in several groups. Not where each pass is a meeting of processes:
            theirs would differ in number, and wait for each other forever.
    """

    def __init__(self, tower: ImageTower | TextTower, head: Head, *, frozen: bool = False) -> None:
        super().__init__()
        self.tower = tower
        self.head = head
        self.frozen = frozen
        self.in_eval: list[nn.Module] = []
        self.in_groups = True
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
        if "features" in inputs:
            return self.head(inputs["features"])
        mask = inputs.get("attention_mask")
        mixes = isinstance(self.tower, TextTower) and self.tower.mixes_padding
        if mask is not None and (mask.device.type == "cpu" or mixes) and self.in_groups:
            return self.head(self._by_length(**inputs))
        return self.head(self.tower(**inputs))

    def _by_length(self, **texts: Tensor) -> Tensor:
        """The tower's features of texts taken in groups of similar length: most of a mixed batch would be padding.

        A GPU is better off with the whole batch at once, unless padding would change what a text gives.
        """
        lengths, order = token_counts(texts).sort(descending=True, stable=True)
        tower = cast(TextTower, self.tower)
        cost = COST_WITH_TABLE if tower.table_gradients else COST_OF_A_GROUP
        most = lengths.clamp(min=1).tolist()
        cuts = equal_lengths(most) if tower.mixes_padding else group_by_length(most, TOKENS_A_GROUP, cost)
        groups = [take_rows(texts, order[start:stop]) for start, stop in cuts]
        embeddings = tower.embed_tokens([group["input_ids"] for group in groups]) if len(groups) > 1 else None
        features = []
        for group, embedded in zip(groups, embeddings or repeat(None), strict=False):
            if bool(group["attention_mask"].all()):
                del group["attention_mask"]
            options = {} if embedded is None else {"embeddings": embedded}
            features.append(tower(**group, **options))
        return torch.cat(features)[order.argsort()]


def embedders(module: nn.Module) -> dict[str, Embedder]:
    """All embedders in ``module``, by their path."""
    return {path: part for path, part in module.named_modules() if isinstance(part, Embedder)}
