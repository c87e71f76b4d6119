"""Evaluators of semantic textual similarity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcl.evaluation.evaluator import Evaluator


class StsEvaluator(Evaluator):
    """Correlation with people's scores."""

    headlines = ("spearman",)

    @classmethod
    def metrics(cls, settings: Any, ks: Sequence[int]) -> list[str]:
        parts = ["", *(f"{task}/" for task in settings.tasks if len(settings.tasks) > 1)]
        return [f"{part}{name}" for part in parts for name in ("spearman", "pearson")]
