"""Pairs of texts with a score: the cosines learn the scores, or their order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from mmcl.config import schema
from mmcl.losses import cosent, cosine_mse
from mmcl.losses.logits.similarity import unit_length
from mmcl.methods.base import refuse_unknown_roles
from mmcl.methods.outputs import Outputs
from mmcl.methods.paired import Compared, view_of
from mmcl.methods.text.text_pairs import PAIR, TextPairs, TextPairsConfig
from mmcl.runtime.errors import MmclError


class ScoredPairsConfig(TextPairsConfig):
    """One text tower, learned from pairs with a score, such as those of STS.

    Roles: `anchor`, `positive` and `score`, a number.
    """

    name: Literal["scored_pairs"] = "scored_pairs"
    loss: Literal["cosent", "cosine_mse"] = "cosent"
    """`cosent`: the order of the scores is learned; `cosine_mse`: the scores themselves."""
    score_range: tuple[float, float] = (0.0, 5.0)
    """Scores that mean nothing alike and all the same, for `cosine_mse`, which learns cosines from 0 to 1."""

    @model_validator(mode="after")
    def _settings_fit(self) -> ScoredPairsConfig:
        if self.score_range[0] >= self.score_range[1]:
            raise ValueError(f"score_range: two ends in ascending order, not {self.score_range}")
        if self.loss == "cosine_mse" and (self.learn_temperature or self.temperature is not None):
            raise ValueError("loss 'cosine_mse' has no temperature; leave temperature and learn_temperature out")
        return self


class ScoredPairs(TextPairs):
    """CoSENT, or the squared error of cosines, of pairs with a score."""

    Config = ScoredPairsConfig
    config: ScoredPairsConfig
    fractions: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def columns_of(cls, config: schema.Config) -> dict[str, str]:
        columns = PAIR | {"score": "number"}
        refuse_unknown_roles(config, columns)
        return columns

    @property
    def rings(self) -> bool:
        return False

    @property
    def negatives_per_query(self) -> None:
        return None

    def compared_with(self, extra: int = 0) -> str:
        return "labelled pairs"

    def learned_scale(self) -> tuple[float | None, float | None]:
        return (None, None) if self.config.loss == "cosine_mse" else super().learned_scale()

    def contrast(self, compared: Compared) -> Tensor:
        anchor, positive = (view_of(compared.outputs, side) for side in self.sides)
        score = compared.outputs.rows.values["score"]
        if self.config.loss == "cosent":
            return cosent(anchor, positive, score, self.temperature)
        return cosine_mse(anchor, positive, self._targets(score))

    def metrics(self, outputs: Outputs) -> dict[str, float]:
        anchor, positive = (unit_length(view_of(outputs, side).float()) for side in self.sides)
        both = torch.stack([(anchor * positive).sum(dim=1), outputs.rows.values["score"].float()])
        correlation = {"correlation": torch.corrcoef(both)[0, 1].nan_to_num().item()}
        return (
            correlation if self.config.loss == "cosine_mse" else correlation | {"temperature": self.temperature.item()}
        )

    def _targets(self, score: Tensor) -> Tensor:
        """Cosines from 0 to 1."""
        low, high = self.config.score_range
        if ((score < low) | (score > high)).any():
            raise MmclError(
                f"method.score_range is {low:g} to {high:g}, but there are scores from {score.min():g} to "
                f"{score.max():g}; set it to the range of the data"
            )
        return (score - low) / (high - low)
