"""The text tower of another package: a network that gives one vector a text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmcl.data.processors.text import TextProcessor
from mmcl.models.text.tower import TextTower
from mmcl.runtime.errors import MmclError


class PlainTextTower(TextTower):
    """Tokens to features by a network that knows nothing of transformers.

    Args:
        net: maps (N, L) token ids and their mask, both int64, to (N, width) features.
        processor: of its texts.
        spec: what rebuilds the network.

    Attributes:
        spec: as given.

    Raises:
        MmclError: the network gives something else.
    """

    def __init__(self, net: nn.Module, processor: TextProcessor, spec: dict[str, Any]) -> None:
        self.spec = spec
        super().__init__(net, processor, pooling="pooled")

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        skipped: Tensor | None = None,
        embeddings: Tensor | None = None,
    ) -> Tensor:
        """(N, width) features of (N, L) token ids; the mask is 1 for tokens and 0 for padding, and all 1 if absent."""
        input_ids, attention_mask = self._fill_up(input_ids, attention_mask)
        features = self.net(input_ids, torch.ones_like(input_ids) if attention_mask is None else attention_mask)
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(input_ids):
            shape = tuple(getattr(features, "shape", ())) or type(features).__name__
            raise MmclError(
                f"text tower '{self.spec['name']}': its network gives {shape} for {len(input_ids)} texts, and not a "
                "tensor (texts, width)"
            )
        return features

    def _vocabulary(self, tokenizer: Any) -> int:
        """What the tokenizer has: the network is made for it."""
        return len(tokenizer)
