from __future__ import annotations

import numpy as np
import pytest

from mmcl.evaluation.rankings import as_run, learn_weights
from mmcl.evaluation.tasks.runs import retrieval_run
from mmcl.retrieval.search.fusion import Ranking, weighted
from mmcl.runtime.errors import MmclError


def judged(names, ids, qrels):
    return retrieval_run(as_run(names, ids), qrels, complete=True, bootstrap=0)


def task(noise: tuple[float, ...], queries: int = 60, corpus: int = 80):
    """Rankings by scores that know the grades, but for so much noise."""
    rng = np.random.default_rng(0)
    grades = (rng.random((queries, corpus)) < 0.1) * 1.0
    rankings = []
    for size in noise:
        scores = grades + size * rng.normal(size=grades.shape)
        order = np.argsort(-scores, axis=1)
        ids = np.array([f"d{row}" for row in range(corpus)], dtype=object)[order]
        rankings.append(Ranking(ids, np.take_along_axis(scores, order, 1)))
    names = [f"q{row}" for row in range(queries)]
    qrels = {name: {f"d{doc}": 1 for doc in np.flatnonzero(row)} for name, row in zip(names, grades, strict=True)}
    return rankings, names, {name: of for name, of in qrels.items() if of}


def test_the_weights_are_the_best_of_all_that_are_tried():
    rankings, names, qrels = task((0.5, 0.7))
    learned = learn_weights(rankings, names, qrels)
    values = {
        share: judged(names, weighted(rankings, (share, 1 - share), 100).ids, qrels).metrics["ndcg@10"]
        for share in np.linspace(0, 1, 21)
    }
    best = max(values, key=values.__getitem__)
    assert sum(learned.weights) == pytest.approx(1)
    assert values[min(values, key=lambda share: abs(share - learned.weights[0]))] == pytest.approx(values[best])


def test_a_ranking_of_chance_gets_no_weight():
    rankings, names, qrels = task((0.3, 1e6))
    assert learn_weights(rankings, names, qrels).weights[0] > 0.8


def test_cross_validation_ranks_each_query_by_weights_learned_without_it():
    rankings, names, qrels = task((0.5, 0.7, 0.9))
    learned = learn_weights(rankings, names, qrels, folds=4)
    assert len(learned.folds) == 4
    assert learned.scores.query_ids == [name for name in names if name in qrels]
    fold = np.random.default_rng(0).permutation(len(qrels)) % 4
    for number, weights in enumerate(learned.folds):
        ids = weighted(rankings, weights, 100).ids
        expected = judged(names, ids, qrels).per_query["ndcg@10"]
        np.testing.assert_allclose(learned.scores.per_query["ndcg@10"][fold == number], expected[fold == number])
    low, high = learned.scores.intervals["ndcg@10"]
    assert low < learned.scores.metrics["ndcg@10"] < high


def test_on_noise_cross_validation_promises_less_than_the_weights_have_on_their_own_queries():
    rankings, names, qrels = task((1e6, 1e6), queries=24)
    learned = learn_weights(rankings, names, qrels, folds=3)
    ids = weighted(rankings, learned.weights, 100).ids
    on_own = judged(names, ids, qrels).metrics["ndcg@10"]
    assert learned.scores.metrics["ndcg@10"] < on_own


def test_too_few_queries_and_unknown_metrics_are_refused():
    rankings, names, qrels = task((0.5, 0.7), queries=10)
    with pytest.raises(MmclError, match="folds"):
        learn_weights(rankings, names, qrels, folds=50)
    with pytest.raises(MmclError, match=r"no metric 'ndgc@10'.*ndcg@10"):
        learn_weights(rankings, names, qrels, metric="ndgc@10")
