"""Random changes of the values of table fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mmcl.data.identity import mix, stable_hash, uniforms


@dataclass(frozen=True)
class DropValues:
    """Leaves out values of categories at random, each by itself, as a :class:`~mmcl.data.batches.views.Transform`.

    Attributes:
        rates: column to the share of its values that is left out.
    """

    rates: Mapping[str, float]

    def __call__(self, inputs: dict[str, Tensor], seeds: Tensor, draw: int, size: int | None) -> dict[str, Tensor]:
        changed = dict(inputs)
        for column, rate in self.rates.items():
            values = inputs[f"{column}/values"]
            drawn = uniforms(mix(seeds, draw), values.shape[1], stable_hash(column))
            changed[f"{column}/values"] = values * (drawn >= rate)
        return changed
