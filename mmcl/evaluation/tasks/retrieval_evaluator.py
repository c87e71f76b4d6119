"""Evaluators of retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcl.evaluation.evaluator import Evaluator

_AT_K = ("hit", "recall", "precision", "ndcg", "map")
_WAYS = ("image_to_text", "text_to_image", "anchor_to_positive", "positive_to_anchor", "query_to_document")


class RetrievalEvaluator(Evaluator):
    """What the evaluators of retrieval share."""

    headlines = ("hit@1", "ndcg@10")
    summary = ("hit", "ndcg", "mrr", "median_rank")
    lower_is_better = ("median_rank",)

    @classmethod
    def metrics(cls, settings: Any, ks: Sequence[int]) -> list[str]:
        names = [*(f"{name}@{k}" for name in _AT_K for k in ks), "map", "mrr", "median_rank"]
        return [f"{way}/{name}" for way in _WAYS for name in names]
