from __future__ import annotations

import itertools

import numpy as np
import pytest
import pytrec_eval

from mmcl.evaluation.metrics import ranks as metrics
from mmcl.evaluation.metrics.ranking import MISSING, Judgements

KS = (1, 5, 10, 20)
TREC = {"hit": "success", "recall": "recall", "precision": "P", "ndcg": "ndcg_cut", "map": "map_cut"}


def test_every_query_equals_trec_eval() -> None:
    """On judgements from −1 to 3, some of documents that no ranking returns."""
    rng = np.random.default_rng(0)
    corpus, absent = 60, 5
    qrels, run, offsets, documents, grades, ranks = {}, {}, [0], [], [], []
    for query in range(200):
        judged = rng.choice(corpus + absent, rng.integers(1, 30), replace=False)
        grade = rng.integers(-1, 4, len(judged))
        grade[0] = 2
        qrels[str(query)] = {str(d): int(g) for d, g in zip(judged, grade, strict=True)}
        rank = np.append(rng.permutation(corpus) + 1.0, np.full(absent, np.inf))
        run[str(query)] = {str(d): float(-rank[d]) for d in range(corpus)}
        documents += [d if d < corpus else MISSING for d in judged[grade > 0]]
        grades += grade[grade > 0].tolist()
        ranks += rank[judged[grade > 0]].tolist()
        offsets.append(len(documents))

    judgements = Judgements(np.array(offsets), np.array(documents), np.array(grades, dtype=float))
    ours = metrics.per_query(np.array(ranks), judgements, KS)

    measures = {f"{name}.{','.join(map(str, KS))}" for name in TREC.values()} | {"recip_rank", "map"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    for (name, trec), k in itertools.product(TREC.items(), KS):
        expected = [theirs[str(query)][f"{trec}_{k}"] for query in range(200)]
        np.testing.assert_allclose(ours[f"{name}@{k}"], expected, atol=1e-12, err_msg=f"{name}@{k}")
    for name, trec in (("mrr", "recip_rank"), ("map", "map")):
        np.testing.assert_allclose(ours[name], [theirs[str(query)][trec] for query in range(200)], atol=1e-12)


@pytest.mark.parametrize("found", [0, 1, 3, 6])
def test_chance_equals_the_mean_over_all_orders(found: int) -> None:
    corpus, relevant, ks = 6, 7, (1, 2, 4, 6, 9)
    orders = np.array(list(itertools.permutations(range(corpus)))) < found  # (720, 6): is the document relevant
    expected = {}
    for k in ks:
        expected[f"hit@{k}"] = orders[:, :k].any(1).mean()
        expected[f"recall@{k}"] = orders[:, :k].sum(1).mean() / relevant
        expected[f"precision@{k}"] = orders[:, :k].sum(1).mean() / k
    chance = metrics.chance(np.array([found]), np.array([relevant]), np.array([corpus]), ks)
    assert chance == pytest.approx(expected, abs=1e-12)


def test_chance_of_one_in_a_million() -> None:
    chance = metrics.chance(np.array([1]), np.array([1]), np.array([10**6]), (10,))
    assert chance["hit@10"] == pytest.approx(1e-5, rel=1e-12)
