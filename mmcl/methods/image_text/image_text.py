"""What the methods over pairs with a tower for each side share."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mmcl.config import schema
from mmcl.data.batches.batch import Inputs
from mmcl.data.batches.views import VALUES, View
from mmcl.methods.base import refuse_unknown_roles
from mmcl.methods.paired import Paired
from mmcl.runtime.errors import MmclError


class ImageText(Paired):
    """Images and texts in one space; or what two towers embed that the config names."""

    @classmethod
    def columns_of(cls, config: schema.Config) -> dict[str, str]:
        columns: dict[str, str] = {name: section.modality for name, section in config.model.towers.items()}
        if len(columns) not in (0, 2):
            raise MmclError(f"model.towers: method '{config.method.name}' has two of them, not {len(columns)}")
        columns, labels = columns or {"image": "image", "text": "text"}, cls.labels_of(config)
        columns |= dict.fromkeys(cls.negatives_of(config), "text") if [*columns.values()][1] == "text" else {}
        for role in columns.keys() & labels.keys():
            raise MmclError(f"model.towers.{role}: data.columns.{role} is of labels; call the tower something else")
        columns |= labels
        refuse_unknown_roles(config, columns)
        return columns

    @classmethod
    def labels_of(cls, config: schema.Config) -> dict[str, str]:
        """Role to modality of labels that say what belongs together; none by default."""
        return {}

    @classmethod
    def negatives_of(cls, config: schema.Config) -> list[str]:
        """Roles of hard negatives, texts as those of the second side; none by default."""
        return []

    @classmethod
    def towers_of(cls, config: schema.Config) -> dict[str, list[str]]:
        columns = cls.columns_of(config)
        first, second = sides_of(columns)
        return {first: [first], second: [second, *(role for role in cls.negatives_of(config) if role in columns)]}

    @property
    def sides(self) -> tuple[str, str]:
        return sides_of(self.columns)

    def views(self) -> dict[str, View]:
        return {side: View(side, side, self.augment_of(side)) for side in self.sides}

    def embed(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        return {side: self.encoder.embedder(side)(**inputs[side]) for side in self.sides}


def sides_of(columns: Mapping[str, str]) -> tuple[str, str]:
    """The two columns that have towers of their own."""
    first, second, *_ = (name for name, modality in columns.items() if modality not in VALUES)
    return first, second
