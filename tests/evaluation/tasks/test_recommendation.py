"""Recommendation against trec_eval on the same rankings, without what users have seen."""

from __future__ import annotations

import numpy as np
import pytest
import pytrec_eval

from mmcl.data.sources import open_source
from mmcl.evaluation import recommendation
from mmcl.evaluation.tasks.recommendation import Choices
from mmcl.runtime.errors import MmclError

USERS, ITEMS = 30, 80


@pytest.fixture
def made():
    rng = np.random.default_rng(0)
    users = {f"i{number}": vector for number, vector in enumerate(rng.normal(size=(USERS, 8)))}
    items = {f"i{number}": vector for number, vector in enumerate(rng.normal(size=(ITEMS, 8)))}
    drawn = {user: rng.permutation(ITEMS) for user in users}
    seen = {user: [f"i{item}" for item in order[: rng.integers(0, 20)]] for user, order in drawn.items()}
    chosen = {user: [f"i{item}" for item in order[20 : 20 + rng.integers(1, 15)]] for user, order in drawn.items()}
    return users, items, chosen, seen


def test_the_numbers_are_those_of_trec_eval_without_the_items_seen(made):
    users, items, chosen, seen = made
    scores = recommendation(users, items, chosen, seen, ks=(5, 20), bootstrap=50)
    run = {
        user: {
            item: float(vector @ other / np.linalg.norm(vector) / np.linalg.norm(other))
            for item, other in items.items()
            if item not in seen[user]
        }
        for user, vector in users.items()
    }
    qrels = {user: dict.fromkeys(of, 1) for user, of in chosen.items()}
    measures = {"recall@5": "recall_5", "recall@20": "recall_20", "ndcg@5": "ndcg_cut_5", "hit@5": "success_5"}
    found = pytrec_eval.RelevanceEvaluator(qrels, {"recall", "ndcg_cut.5,20", "success"}).evaluate(run)
    for ours, theirs in measures.items():
        wanted = [found[user][theirs] for user in scores.query_ids]
        np.testing.assert_allclose(scores.per_query[ours], wanted, atol=1e-9)
        low, high = scores.intervals[ours]
        assert low <= scores.metrics[ours] <= high
    assert scores.queries_in_corpus == 0
    assert scores.candidates.tolist() == [ITEMS - len(seen[user]) for user in scores.query_ids]


def test_what_a_user_has_seen_is_nothing_to_be_found(made):
    users, items, chosen, seen = made
    more = {user: [*of, *seen[user]] for user, of in chosen.items()}
    once, twice = (recommendation(users, items, of, seen, bootstrap=0) for of in (chosen, more))
    assert once.metrics == twice.metrics


def test_users_who_have_seen_all_that_they_chose_are_refused(made):
    users, items, chosen, _ = made
    with pytest.raises(MmclError, match=r"chose nothing but what they had seen.*--seen-split"):
        recommendation(users, items, chosen, chosen)


def test_choices_that_were_made_before_are_counted(tmp_path, caplog):
    for name, pairs in {"before": ["ua", "ub", "va"], "test": ["ub", "uc", "va", "wa"]}.items():
        lines = ["user,item", *(f"{user},{item}" for user, item in pairs)]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    before, test = (open_source(tmp_path / f"{name}.csv") for name in ("before", "test"))
    choices = Choices.of(test, [before], "user", "item")
    assert "2 of 4 choices of users stand in the rows before them" in caplog.text
    assert choices.seen == {"u": {"a", "b"}, "v": {"a"}, "w": set()}
    assert choices.items == {"a": (1, 0), "b": (1, 1), "c": (0, 1)}


def test_a_user_with_nothing_new_does_not_count(made):
    users, items, chosen, seen = made
    chosen["i0"] = seen["i0"] = ["i1", "i2"]
    scores = recommendation(users, items, chosen, seen, bootstrap=0)
    assert "i0" not in scores.query_ids
    assert scores.skipped_queries == 1


def test_without_any_item_to_be_found(made):
    users, items, _, seen = made
    with pytest.raises(MmclError, match="no relevant document"):
        recommendation(users, items, {}, seen)
