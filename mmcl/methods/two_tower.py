"""Two towers for recommendation: who, and what they chose (Covington et al. 2016; Yi et al. 2019)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmcl.config import schema
from mmcl.config.methods import MethodConfig
from mmcl.config.model import CategoryFieldConfig, TableTowerConfig
from mmcl.data.augment.values import DropValues
from mmcl.data.batches.views import View
from mmcl.data.processors.table import TableProcessor
from mmcl.losses import Blockwise, sampled_softmax
from mmcl.methods.base import Context, refuse_unknown_roles
from mmcl.methods.image_text.image_text import ImageText
from mmcl.methods.outputs import Outputs
from mmcl.methods.paired import Compared
from mmcl.methods.parts.frequency import FrequencyConfig, ItemFrequency
from mmcl.methods.parts.matryoshka import MatryoshkaConfig
from mmcl.methods.step import Step
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError

SIDES = ("user", "item")
ITEM = 1  # of a row's identities, the column of the item


class TwoTowerConfig(MethodConfig):
    """A tower of users and one of what they chose, under a softmax over the items of the batch, corrected for their
    frequency (Yi et al. 2019, doi:10.1145/3298689.3346996)."""

    name: Literal["two_tower"] = "two_tower"
    temperature: Annotated[float, Field(ge=0.01, le=1.0)] | None = None
    """Temperature at the start; that of the model to start from if absent, and 0.07 if there is none."""
    learn_temperature: bool = True
    """Learn the temperature; it stays at least 0.01."""
    frequency: FrequencyConfig | None = Field(default_factory=FrequencyConfig)
    """How often each item is drawn; without, popular items are pushed away from everybody."""
    matryoshka: MatryoshkaConfig | None = None
    """Compute the loss of the first dimensions as well."""


class TwoTower(ImageText):
    """A softmax of each row's item among the items of the batch.

    Rows of one item are no negatives of each other, nor are those of users who are the same in all that is read of
    them.

    Attributes:
        frequency: of the items, by which the logits are corrected; None without.
    """

    Config = TwoTowerConfig
    config: TwoTowerConfig
    start_temperature: ClassVar[float] = 0.07

    def __init__(self, config: TwoTowerConfig, encoder: Towers, context: Context) -> None:
        super().__init__(config, encoder, context)
        of = config.frequency
        self.frequency = None if of is None else ItemFrequency(of.buckets, of.rate)

    @classmethod
    def columns_of(cls, config: schema.Config) -> dict[str, str]:
        towers = config.model.towers
        if set(towers) != set(SIDES):
            found = " and ".join(towers) or "none"
            raise MmclError(f"model.towers: method 'two_tower' has two of them, called user and item, not {found}")
        tables = [section for section in towers.values() if isinstance(section, TableTowerConfig)]
        fields = {name: of for section in tables for name, of in section.fields.items()}
        beside = [of.without for of in fields.values() if isinstance(of, CategoryFieldConfig) and of.without]
        columns: dict[str, str] = {side: towers[side].modality for side in SIDES}
        refuse_unknown_roles(config, columns | dict.fromkeys([*fields, *beside], "table"))
        return columns

    def views(self) -> dict[str, View]:
        return {
            name: replace(view, transform=self._dropout(name) or view.transform)
            for name, view in super().views().items()
        }

    def _dropout(self, name: str) -> DropValues | None:
        """What leaves out values of the columns of a table tower at random."""
        processor = self.encoder.embedder(name).processor
        rates = processor.dropout if isinstance(processor, TableProcessor) else {}
        return DropValues(rates) if rates else None

    @property
    def counted(self) -> str | None:
        config = self.config.frequency
        return self.sides[1] if config is not None and config.source == "rows" else None

    def count(self, identities: Tensor) -> None:
        assert self.frequency is not None, "asked for by counted"
        self.frequency.count(identities)

    def contrast(self, compared: Compared) -> Tensor:
        outputs, (user, item) = compared.outputs, self.sides
        ids = outputs.rows.ids
        return sampled_softmax(
            outputs.embeddings[user],
            outputs.embeddings[item],
            torch.zeros(len(ids)) if self.frequency is None else self.frequency.log_probability(ids[:, ITEM]),
            self.temperature,
            ids=ids,
            blockwise=Blockwise(across=self.across),
        )

    @torch.no_grad()
    def after_update(self, outputs: Outputs, step: Step) -> None:
        super().after_update(outputs, step)
        if self.frequency is not None and self.counted is None:
            for batch in outputs.each():
                self.frequency.update(self.gathered({"ids": batch.rows.ids})["ids"][:, ITEM])
