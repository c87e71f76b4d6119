"""From a tower's features to the shared space."""

from __future__ import annotations

from torch import nn

from mmcl.config.model import HeadConfig
from mmcl.runtime.errors import MmclError


class Head(nn.Sequential):
    """A map from (N, ``width``) features to (N, ``dim``) embeddings.

    Raises:
        MmclError: kind ``none`` where the width is not the dimension.
    """

    def __init__(self, config: HeadConfig, width: int, dim: int) -> None:
        if config.kind == "none" and width != dim:
            raise MmclError(f"model.dim is {dim}, but head kind 'none' keeps the tower's width {width}")
        self.config = config
        hidden = config.hidden or width
        layers: dict[str, list[nn.Module]] = {
            "none": [],
            "linear": [nn.Linear(width, dim, bias=False)],
            "mlp": [nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, dim, bias=False)],
        }
        super().__init__(nn.Dropout(config.dropout), *layers[config.kind])

    def set_dropout(self, rate: float) -> None:
        """Drop another share of the features in training."""
        self.config = self.config.model_copy(update={"dropout": rate})
        self[0] = nn.Dropout(rate)

    def linear_layers(self) -> list[nn.Linear]:
        """Its linear layers, in order."""
        return [layer for layer in self if isinstance(layer, nn.Linear)]
