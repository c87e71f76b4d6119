"""From a tower's features to the shared space."""

from __future__ import annotations

from torch import nn

from mmcl.config.schema import HeadConfig
from mmcl.runtime.errors import MmclError


def build_head(config: HeadConfig, width: int, dim: int) -> nn.Module:
    """A module from (N, ``width``) features to (N, ``dim``) embeddings.

    Raises:
        MmclError: kind ``none`` where the width is not the dimension.
    """
    dropout = nn.Dropout(config.dropout)
    if config.kind == "none":
        if width != dim:
            raise MmclError(
                f"model.dim is {dim}, but a head of kind 'none' keeps the tower's width {width}; make them equal"
            )
        return dropout
    if config.kind == "linear":
        return nn.Sequential(dropout, nn.Linear(width, dim, bias=False))
    hidden = config.hidden or width
    return nn.Sequential(dropout, nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, dim, bias=False))
