"""The evaluator of recommendation, while the model learns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mmcl.config import schema
from mmcl.config.data import SourceConfig
from mmcl.config.evaluation import EvaluationSourceConfig
from mmcl.data.rows import Rows
from mmcl.data.sources import open_described
from mmcl.encoding.compute import tower_inputs
from mmcl.encoding.encoder import Encoder
from mmcl.encoding.shares import embed
from mmcl.evaluation.evaluator import Evaluator, Setup
from mmcl.evaluation.measured import SourceResults
from mmcl.evaluation.metrics.display import RANKING
from mmcl.evaluation.tasks.recommendation import TOWERS, WAY, Choices, recommendation_of_rows, require_two_towers
from mmcl.models.towers import Towers
from mmcl.runtime import distributed

_METRICS = ("hit", "recall", "precision", "ndcg", "map")


class RecommendationSourceConfig(EvaluationSourceConfig):
    """Rows of what users chose, to be found among all items but those of their own training rows."""

    task: Literal["recommendation"] = "recommendation"
    user: str = "user_id"
    """The column of the ids of users, here and in the training rows."""
    item: str = "item_id"
    """The column of the ids of items."""


class RecommendationEvaluator(Evaluator):
    """Recommendation of items to users by the two towers of a model.

    Args:
        choices: who chose what.
        inputs: name of each tower to the inputs of the users, and of the items.
        ks: cut-offs.
    """

    Config = RecommendationSourceConfig
    headlines = ("ndcg@10", "recall@20")
    summary = ("ndcg", "recall", "hit")
    lower_is_better = RANKING.lower_is_better
    display = RANKING

    def __init__(self, choices: Choices, inputs: dict[str, list[Any]], ks: tuple[int, ...]) -> None:
        self.choices, self.inputs, self.ks = choices, inputs, ks
        self.source = choices.test.name

    @classmethod
    def open(cls, settings: RecommendationSourceConfig, setup: Setup) -> RecommendationEvaluator:
        require_two_towers(setup.encoder)
        opened = _opened(settings, setup.config, f"evaluation.sources.{setup.name}")
        choices = Choices.of(*opened, settings.user, settings.item)
        inputs = choices.inputs(setup.encoder, partial(_named, settings, setup.config))
        return cls(choices, inputs, setup.config.evaluation.ks)

    @classmethod
    def metrics(cls, settings: RecommendationSourceConfig, ks: Sequence[int]) -> list[str]:
        return [f"{WAY}/{name}@{k}" for name in _METRICS for k in ks] + [f"{WAY}/mrr", f"{WAY}/map"]

    @classmethod
    def judge(cls, settings: RecommendationSourceConfig, encoder: Encoder, config: schema.Config) -> SourceResults:
        test, before = _opened(settings, config, "")
        scores = recommendation_of_rows(
            encoder,
            test,
            before,
            user=settings.user,
            item=settings.item,
            named=partial(_named, settings, config),
            ks=config.evaluation.ks,
        )
        return SourceResults({WAY: scores})

    def evaluate(self, encoder: Towers, *, warn: bool = True) -> dict[str, float]:
        """``user_to_item/ndcg@10`` and so on, fractions in [0, 1]."""
        users, items = (self._embed(encoder, tower) for tower in TOWERS)
        if distributed.rank() != 0:
            return {}
        metrics = self.choices.score(users, items, self.ks, bootstrap=0).metrics
        return {f"{WAY}/{name}": value for name, value in metrics.items()}

    def _embed(self, encoder: Towers, tower: str) -> np.ndarray:
        inputs, embedder = self.inputs[tower], encoder.embedder(tower)

        def some(places: np.ndarray) -> dict[str, Tensor]:
            return tower_inputs(embedder, [inputs[place] for place in places], None)[0]

        with torch.no_grad():
            return embed(encoder, tower, some, len(inputs))


def _opened(settings: SourceConfig, config: schema.Config, where: str) -> tuple[Rows, list[Rows]]:
    """The rows to judge by, and those to learn from."""
    training = [open_described(source, config.data.image) for source in (config.data.train, *config.data.mix)]
    return open_described(settings, config.data.image, where or None), training


def _named(settings: SourceConfig, config: schema.Config, column: str) -> str:
    return config.data.column_of(column, settings)
