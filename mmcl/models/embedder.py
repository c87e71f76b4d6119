"""A tower and its head: from pictures or tokens to the shared space."""

from __future__ import annotations

from torch import Tensor, nn

from mmcl.models.heads import Head
from mmcl.models.image_tower import ImageTower
from mmcl.models.text_tower import TextTower


class Embedder(nn.Module):
    """One tower, and the head that maps its features to the shared space.

    Its inputs are named: ``pixels`` for a picture; ``input_ids`` and ``attention_mask`` for a text; or ``features``,
    the tower's own output computed earlier, for a frozen tower.
    """

    def __init__(self, tower: ImageTower | TextTower, head: Head, *, frozen: bool = False) -> None:
        super().__init__()
        self.tower = tower
        self.head = head
        self.frozen = frozen
        if frozen:
            self.tower.requires_grad_(False)
            self.tower.eval()

    def train(self, mode: bool = True) -> Embedder:
        """A frozen tower stays in evaluation mode: its dropout and its running statistics must not move."""
        super().train(mode)
        if self.frozen:
            self.tower.eval()
        return self

    def forward(self, **inputs: Tensor) -> Tensor:
        """(N, D) embeddings, not normalised."""
        features = inputs["features"] if "features" in inputs else self.tower(**inputs)
        return self.head(features)
