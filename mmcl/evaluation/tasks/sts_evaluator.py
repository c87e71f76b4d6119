"""Evaluators of semantic textual similarity."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from mmcl.config import schema
from mmcl.config.evaluation import EvaluationSourceConfig
from mmcl.data.rows import columns_named_by
from mmcl.data.sources import open_source, source_named_by
from mmcl.encoding.encoder import Encoder
from mmcl.evaluation.evaluator import Evaluator, Setup
from mmcl.evaluation.live_texts import LiveTexts
from mmcl.evaluation.measured import SourceResults
from mmcl.evaluation.metrics.display import CORRELATION
from mmcl.evaluation.tasks.sentence_pairs import ROLES, SentencePairs, open_sts
from mmcl.evaluation.tasks.sts import sts
from mmcl.models.towers import Towers
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")


class StsSourceConfig(EvaluationSourceConfig):
    """Pairs with scores: Spearman's correlation of the similarities of `sentence1` and `sentence2` with `score`, both
    behind the prompt that `data.prompts` has for `text` or else for `anchor`, or the model's default one."""

    task: Literal["sts"] = "sts"
    tasks: list[str] = Field(default_factory=list)
    """The tasks to evaluate on, of a table that has several in its column `task`; all if none is named."""


class StsEvaluator(Evaluator):
    """Correlation of the similarities of pairs of sentences with people's scores.

    See :func:`mmcl.evaluation.tasks.sts.sts`.

    Args:
        pairs: labelled pairs.
        prompt: name of the prompt of both sentences; the model's own where None.
    """

    Config = StsSourceConfig
    headlines = ("spearman",)
    display = CORRELATION

    @classmethod
    def open(cls, settings: StsSourceConfig, setup: Setup) -> StsEvaluator:
        if "text" not in setup.encoder.modalities:
            raise MmclError(f"evaluation.sources.{setup.name}: sts compares texts, which the model does not embed")
        where = f"evaluation.sources.{setup.name}"
        columns = {f"{where}.columns.{role}": settings.columns.get(role, role) for role in ROLES}
        with source_named_by(where), columns_named_by(columns):
            pairs = open_pairs(settings)
        return StsEvaluator(pairs, _prompt(setup.config))

    @classmethod
    def judge(cls, settings: StsSourceConfig, encoder: Encoder, config: schema.Config) -> SourceResults:
        return SourceResults(sts(encoder, open_pairs(settings), prompt=_prompt(config)))

    @classmethod
    def metrics(cls, settings: StsSourceConfig, ks: Sequence[int]) -> list[str]:
        parts = ["", *(f"{task}/" for task in settings.tasks if len(settings.tasks) > 1)]
        return [f"{part}{name}" for part in parts for name in ("spearman", "pearson")]

    def __init__(self, pairs: SentencePairs, prompt: str | None = None) -> None:
        self.pairs, self.prompt = pairs, prompt
        self.source = pairs.name

    def evaluate(self, encoder: Towers, *, warn: bool = True) -> dict[str, float]:
        """``spearman`` and ``pearson``, and those of each task as ``STS12/spearman`` and so on where there are more.

        What is undefined, since all similarities or all scores of a task are equal, is left out and warned of."""
        scores = sts(LiveTexts(encoder), self.pairs, prompt=self.prompt, bootstrap=0)
        if distributed.rank() != 0:
            return {}
        several = len(self.pairs.tasks) > 1
        metrics = {name: float(value) for name, value in scores.metrics.items() if several or "/" not in name}
        undefined = [name for name, value in metrics.items() if math.isnan(value)]
        if undefined and warn:
            log.warning("%s: all similarities or all scores are equal: no %s", self.source, ", ".join(undefined))
        return {name: value for name, value in metrics.items() if name not in undefined}


def _prompt(config: schema.Config) -> str | None:
    """Neither sentence searches for the other, so both are read as what training compares: `text`, or an `anchor`."""
    return config.data.prompts.get("text", config.data.prompts.get("anchor"))


def open_pairs(settings: StsSourceConfig) -> SentencePairs:
    """The labelled pairs that a source with the task ``sts`` describes."""
    tasks, columns = settings.tasks, settings.columns
    if settings.separator is None:
        return open_sts(settings.source, split=settings.split, tasks=tasks, columns=columns)
    rows = open_source(settings.source, split=settings.split, separator=settings.separator)
    return open_sts(rows, split=None, tasks=tasks, columns=columns)
