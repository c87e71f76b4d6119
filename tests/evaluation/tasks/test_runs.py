"""Runs judged by us and by trec_eval."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcl.data.sources.beir import open_beir
from mmcl.data.sources.trec import read_run, write_run
from mmcl.evaluation import beir_retrieval, retrieval, retrieval_run
from mmcl.evaluation.tasks.runs import beir_run
from mmcl.runtime.errors import MmclError

CRANFIELD = Path(__file__).parents[4] / "shared" / "data" / "cranfield"

KS = (1, 3, 10, 100)
NAMES = {"map": "map", "mrr": "recip_rank"} | {
    f"{ours}@{k}": f"{theirs}_{k}"
    for k in KS
    for ours, theirs in {
        "hit": "success",
        "recall": "recall",
        "precision": "P",
        "ndcg": "ndcg_cut",
        "map": "map_cut",
    }.items()
}


def trec_eval(qrels, run):
    """{query: {our name of a measure: value}}."""
    cuts = ",".join(map(str, KS))
    measures = {f"{name}.{cuts}" for name in ("success", "recall", "P", "ndcg_cut", "map_cut")}
    qrels = {query: {key: int(grade) for key, grade in grades.items()} for query, grades in qrels.items()}
    found = pytrec_eval.RelevanceEvaluator(qrels, measures | {"map", "recip_rank"}).evaluate(run)
    return {query: {ours: values[theirs] for ours, theirs in NAMES.items()} for query, values in found.items()}


def check(scores, expected):
    """Every measure of every query, and their means."""
    assert set(scores.query_ids) == set(expected)
    for name in NAMES:
        theirs = [expected[query][name] for query in scores.query_ids]
        np.testing.assert_allclose(scores.per_query[name], theirs, atol=1e-6, err_msg=name)
        assert scores.metrics[name] == pytest.approx(np.mean(theirs), abs=1e-6)


def drawn(seed, values):
    """Judgements, and a run with ties, of which neither has all the queries of the other."""
    rng = np.random.default_rng(seed)
    documents = [f"d{number}" for number in range(40)] + ["é", "D", "10", "9"]
    queries = [f"q{number}" for number in range(12)]
    qrels, run = {}, {}
    for query in rng.permutation(queries)[:9].tolist():
        judged = rng.choice(documents, rng.integers(1, 15), replace=False).tolist()
        qrels[query] = {document: int(rng.integers(0, 4)) for document in judged}
    for query in rng.permutation(queries)[:9].tolist():
        listed = rng.choice(documents, rng.integers(1, 40), replace=False).tolist()
        run[query] = {document: float(rng.integers(values)) / 3 for document in listed}
    return qrels, run


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 1000]))
def test_random_runs_with_ties_and_missing_queries_score_as_in_trec_eval(seed, values):
    qrels, run = drawn(seed, values)
    scores = retrieval_run(run, qrels, KS, bootstrap=0)
    check(scores, trec_eval(qrels, run))
    assert scores.missing_queries == len(qrels.keys() - run.keys())
    assert scores.skipped_queries == len(run.keys() - qrels.keys())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_complete_scores_zero_where_the_run_has_nothing(seed):
    qrels, run = drawn(seed, 5)
    nothing = dict.fromkeys(NAMES, 0.0)
    expected = dict.fromkeys(qrels, nothing) | trec_eval(qrels, run)
    check(retrieval_run(run, qrels, KS, complete=True, bootstrap=0), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_strict_ties_never_help(seed):
    """As trec_eval scores the run in which, of equal documents, the worse have a little more."""
    qrels, run = drawn(seed, 4)
    ordered = {
        query: {key: score - 1e-3 * max(qrels.get(query, {}).get(key, 0), 0) for key, score in row.items()}
        for query, row in run.items()
    }
    strict = retrieval_run(run, qrels, KS, ties="strict", bootstrap=0)
    check(strict, trec_eval(qrels, ordered))
    generous = retrieval_run(run, qrels, KS, bootstrap=0)
    assert all(strict.metrics[name] <= generous.metrics[name] + 1e-12 for name in ("map", "mrr", "hit@1", "recall@3"))


def test_trec_eval_compares_scores_as_float32():
    qrels, run = {"q": {"a": 1}}, {"q": {"a": 1.0, "b": 1.0 - 1e-12}}
    check(retrieval_run(run, qrels, KS, bootstrap=0), trec_eval(qrels, run))
    assert retrieval_run(run, qrels, KS, ties="strict", bootstrap=0).metrics["mrr"] == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["cosine", "dot", "euclidean"]))
def test_vectors_with_ties_rank_as_in_trec_eval(seed, similarity):
    rng = np.random.default_rng(seed)
    queries, corpus = rng.integers(-1, 2, (6, 3)).astype(float), rng.integers(-1, 2, (30, 3)).astype(float)
    names = [str(number) for number in rng.permutation(1000)[:30]]
    qrels = {f"q{q}": {names[d]: int(rng.integers(0, 3)) for d in rng.choice(30, 8, replace=False)} for q in range(6)}
    qrels["q0"][names[0]] = 1
    if similarity == "euclidean":
        table = -np.linalg.norm(queries[:, None] - corpus[None], axis=2)
    else:
        table = queries @ corpus.T
        if similarity == "cosine":
            lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(corpus, axis=1)
            table = np.divide(table, lengths, out=np.zeros_like(table), where=lengths > 0)
    run = {f"q{q}": dict(zip(names, row.round(6).tolist(), strict=True)) for q, row in enumerate(table)}
    scores = retrieval(
        ([f"q{q}" for q in range(6)], queries),
        (names, corpus),
        qrels,
        KS,
        similarity=similarity,
        ties="trec_eval",
        bootstrap=0,
    )
    check(scores, trec_eval(qrels, run))
    assert scores.to_dict()["ties"] == "trec_eval"


class TermFrequencies:
    """Texts as rounded counts of words weighed by their rarity, hashed: a lexical scorer with many ties."""

    name = "lexical scorer"

    def encode(self, texts):
        vectors = np.zeros((len(texts), 512), np.float32)
        for row, text in enumerate(texts):
            for word, count in Counter(text.lower().split()).items():
                vectors[row, sum(map(ord, word)) % 512] += round(1 + math.log(count))
        return vectors


@pytest.mark.skipif(not CRANFIELD.is_dir(), reason="needs the Cranfield collection at ../shared/data/cranfield")
def test_cranfield_by_a_lexical_scorer_scores_as_in_trec_eval(tmp_path):
    beir = open_beir(CRANFIELD, "test")
    ours = beir_retrieval(TermFrequencies(), beir, KS, ties="trec_eval", bootstrap=0, run=tmp_path / "lexical.trec")
    run = read_run(tmp_path / "lexical.trec")
    assert {len(documents) for documents in run.found.values()} == {1000}
    theirs = trec_eval({query: beir.qrels[query] for query in beir.queries}, run.found)
    again = beir_run(run, beir, KS, bootstrap=0)
    check(again, theirs)
    assert again.data == ours.data
    assert again.query_ids == ours.query_ids
    for name in NAMES:  # within the 1,000 documents of the run
        if name != "map":
            assert ours.metrics[name] == pytest.approx(again.metrics[name], abs=2e-3), name
    assert ours.metrics["ndcg@10"] == pytest.approx(again.metrics["ndcg@10"], abs=1e-6)


def test_the_tables_of_mtebs_own_tests_come_out():
    """The values of mteb's tests of its retrieval metrics; the names are ours."""
    qrels = {"0": {"0": 1, "1": 1}, "1": {"1": 1}}
    run = {"0": {"0": 1.0, "1": 0.9, "2": 0.8}, "1": {"0": 0.0, "1": 1.0, "2": 0.0}}
    kept = {"ndcg": (1, 1, 1), "map": (0.75, 1, 1), "recall": (0.75, 1, 1), "precision": (1, 0.75, 0.5)}
    dropped = {
        "ndcg": (0.5, 0.30657, 0.30657),
        "map": (0.25, 0.25, 0.25),
        "recall": (0.25, 0.25, 0.25),
        "precision": (0.5, 0.25, 0.16667),
    }
    for rule, table in (("keep", kept), ("drop", dropped)):
        scores = retrieval_run(run, qrels, (1, 2, 3), self_matches=rule, bootstrap=0)
        for name, values in table.items():
            assert [scores.metrics[f"{name}@{k}"] for k in (1, 2, 3)] == pytest.approx(values, abs=1e-5), name


def test_a_run_says_what_is_known_of_it():
    run, qrels = {"q": {"a": 2.0, "b": 1.0}, "x": {"a": 1.0}}, {"q": {"b": 1, "c": 1}, "y": {"a": 1}}
    scores = retrieval_run(run, qrels, (1,))
    assert scores.chance() == {}
    assert scores.size == "n = 1 queries, a run of at most 2 documents each"
    assert scores.remarks == [
        "1 queries left out because nothing is relevant to them",
        "1 judged queries without results, left out",
        "1 relevant documents missing from the run, counted as never found",
    ]
    assert scores.metrics["median_rank"] == 2
    assert retrieval_run({"q": {}}, {"q": {"a": 1}}, (1,), bootstrap=0).metrics["median_rank"] == 1


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (({"q": {"a": math.nan}}, {"q": {"a": 1}}), {}, "the score of document 'a' for query 'q' is nan"),
        (({"q": ["a"]}, {"q": {"a": 1}}), {}, "run: expected {query id: {document id: score}}"),
        (({"q": {"a": 1.0}}, {"p": {"a": 1}}), {}, "no query in common: the run has ids such as 'q'"),
        (({"q": {"a": 1.0}}, {"q": {"a": "x"}}), {}, "the grade of document 'a' for query 'q' is 'x'"),
        (({"q": {"a": 1.0}}, {"q": {"a": 1}}), {"ties": "trec"}, "ties 'trec': no such rule"),
        (({"q": {"a": 1.0}}, {"q": {"a": 1}}), {"self_matches": "x"}, "self_matches 'x': no such rule"),
        (({"q": {"a": 1.0}}, {"q": {"a": 1}}), {"ks": (0,)}, "a cut-off is a whole number from 1 up"),
    ],
)
def test_bad_input_is_answered_in_one_line(arguments, options, message):
    with pytest.raises(MmclError, match=message) as caught:
        retrieval_run(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_files_are_read(tmp_path):
    write_run(tmp_path / "a.run", {"q": {"a": 1.0, "b": 2.0}})
    (tmp_path / "a.qrels").write_text("q 0 a 1\n")
    assert retrieval_run(tmp_path / "a.run", tmp_path / "a.qrels", (1,), bootstrap=0).metrics["mrr"] == 0.5
