from __future__ import annotations

import numpy as np
import pytest
import pytrec_eval

from mmcl.evaluation import retrieval
from mmcl.evaluation.rankings import judge_ranking
from mmcl.runtime.errors import MmclError


def task(queries: int = 30, corpus: int = 200):
    rng = np.random.default_rng(0)
    qrels = {
        f"q{query}": {f"d{doc}": int(rng.integers(0, 3)) for doc in rng.choice(corpus, 12, replace=False)}
        for query in range(queries)
    }
    return rng.normal(size=(queries, 8)), rng.normal(size=(corpus, 8)), qrels


def test_a_ranking_of_the_whole_corpus_scores_as_its_vectors_do():
    queries, corpus, qrels = task()
    names, ids = list(qrels), np.array([f"d{row}" for row in range(len(corpus))])
    order = np.argsort(-(queries @ corpus.T), axis=1)
    ours = judge_ranking(names, ids[order], qrels, (1, 10, 100), corpus=len(corpus))
    theirs = retrieval((names, queries), (ids.tolist(), corpus), qrels, (1, 10, 100), similarity="dot")
    assert ours.query_ids == theirs.query_ids
    for name, values in theirs.per_query.items():
        np.testing.assert_allclose(ours.per_query[name], values, err_msg=name)
    assert ours.intervals == theirs.intervals


def test_a_ranking_that_is_cut_scores_as_in_trec_eval():
    queries, corpus, qrels = task()
    ids = np.array([f"d{row}" for row in range(len(corpus))])[np.argsort(-(queries @ corpus.T), axis=1)[:, :50]]
    ids = ids.astype(object)
    ids[3, 20:] = None  # nothing more was found
    ours = judge_ranking(list(qrels), ids, qrels, (10, 100), corpus=len(corpus), bootstrap=0)
    run = {
        name: {document: 1.0 / rank for rank, document in enumerate(row, 1) if document is not None}
        for name, row in zip(qrels, ids.tolist(), strict=True)
    }
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.100", "map", "recip_rank"}).evaluate(run)
    for name, trec in {"ndcg@10": "ndcg_cut_10", "recall@100": "recall_100", "map": "map", "mrr": "recip_rank"}.items():
        np.testing.assert_allclose(ours.per_query[name], [theirs[query][trec] for query in qrels], err_msg=name)


def test_a_document_with_the_query_s_own_id_is_left_out_where_it_should_be():
    ids = np.array([["a", "b", "c"]], dtype=object)
    qrels = {"a": {"b": 1}}
    kept = judge_ranking(["a"], ids, qrels, (1,), corpus=3, bootstrap=0)
    dropped = judge_ranking(["a"], ids, qrels, (1,), corpus=3, self_matches="drop", bootstrap=0)
    assert (kept.metrics["mrr"], dropped.metrics["mrr"]) == (0.5, 1.0)
    assert (kept.queries_in_corpus, dropped.queries_in_corpus) == (1, 1)


def test_rankings_that_fit_no_judgement_are_refused():
    ids = np.array([["a"]], dtype=object)
    with pytest.raises(MmclError, match="no relevant document"):
        judge_ranking(["q"], ids, {"other": {"a": 1}}, corpus=1)
    with pytest.raises(MmclError, match="1 rankings of 2 queries"):
        judge_ranking(["q", "r"], ids, {"q": {"a": 1}}, corpus=1)
