"""What the towers of all modalities have in common."""

from __future__ import annotations

from typing import Any

from torch import nn


class Tower(nn.Module):
    """The inputs of one modality to features.

    Attributes:
        net: the network, of another library.
        width: number of features.
    """

    net: Any  # its type depends on the name
    width: int
