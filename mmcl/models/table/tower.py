"""The fields of a row, each through a network of its own, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl.models.embedder import Embedder
from mmcl.models.tower import Tower


class CategoryBag(nn.Module):
    """The sum of the vectors of a cell's values over the root of their number: long lists then vary as short ones do.

    Args:
        entries: numbers that a value can have; 0 is none, whose vector is zero.
        width: dimensions of a vector.
    """

    def __init__(self, entries: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.randn(entries, width) * width**-0.5)

    def forward(self, values: Tensor) -> Tensor:
        """(N, width) of (N, L) int64 numbers of values, filled up with 0."""
        total = F.embedding_bag(values, self.weight, mode="sum", padding_idx=0)
        return total / (values != 0).sum(dim=1, keepdim=True).clamp(min=1).sqrt()


class NumberPair(nn.Module):
    """A standard score, and whether there is one."""

    width = 2

    def forward(self, numbers: Tensor) -> Tensor:
        """The (N, 2) numbers themselves."""
        return numbers


FieldNet: TypeAlias = CategoryBag | NumberPair | Embedder


class TableTower(Tower):
    """Rows to the features of their fields, one after the other.

    Args:
        fields: column to its network: of texts or images an embedder with a head of no layers.

    Attributes:
        columns: of the fields, in the order of their networks, since a column's name need not be one for a module.
    """

    def __init__(self, fields: Mapping[str, FieldNet]) -> None:
        super().__init__()
        self.columns = list(fields)
        self.net = nn.ModuleList(fields.values())
        self.width = sum(net.tower.width if isinstance(net, Embedder) else net.width for net in fields.values())

    def forward(self, **inputs: Tensor) -> Tensor:
        """(N, width) features of the fields' inputs, which are called by column and name: ``genres/values``."""
        named: dict[str, dict[str, Tensor]] = {column: {} for column in self.columns}
        for path, tensor in inputs.items():
            column, _, name = path.rpartition("/")
            named[column][name] = tensor
        return torch.cat([net(**named[column]) for column, net in zip(self.columns, self.net, strict=True)], dim=1)
