"""Evaluators by name: which metrics they have, which of these to show, and which value is the better one."""

from __future__ import annotations

import pytest

from mmcl.config.data import JudgedSourceConfig
from mmcl.config.training import EvaluationConfig
from mmcl.evaluation.evaluator import EVALUATORS, evaluator_of

SOURCES = {"dev": {"source": "x"}, "sts": {"source": "y", "task": "sts", "tasks": ["one", "two"]}}


@pytest.mark.parametrize(
    ("key", "higher", "headline", "summary"),
    [
        ("dev/image_to_text/hit@1", True, True, True),
        ("dev/image_to_text/hit@5", True, False, True),
        ("dev/query_to_document/ndcg@10", True, True, True),
        ("dev/text_to_image/median_rank", False, False, True),
        ("dev/text_to_image/map", True, False, False),
        ("dev/space/image/uniformity", True, False, False),
        ("sts/spearman", True, True, True),
        ("sts/one/spearman", True, True, True),
        ("sts/pearson", True, False, False),
    ],
)
def test_an_evaluator_says_which_metrics_to_show_and_which_value_is_better(key, higher, headline, summary):
    kind = evaluator_of(key, EvaluationConfig.model_validate({"sources": SOURCES}))
    assert (kind.higher_is_better(key), kind.is_headline(key), kind.in_summary(key)) == (higher, headline, summary)


def test_the_keys_of_an_evaluator_are_what_a_checkpoint_may_be_chosen_by():
    sts = EVALUATORS["sts"].metrics(JudgedSourceConfig.model_validate(SOURCES["sts"]), (1,))
    assert sts == [f"{of}{by}" for of in ("", "one/", "two/") for by in ("spearman", "pearson")]
    retrieval = EVALUATORS["retrieval"].metrics(JudgedSourceConfig.model_validate(SOURCES["dev"]), (1, 7))
    for key in (*sts, *retrieval):
        name = f"{'sts' if key in sts else 'dev'}/{key}"
        EvaluationConfig.model_validate({"sources": SOURCES, "ks": (1, 7), "best": name})
    assert "image_to_text/hit@7" in retrieval
