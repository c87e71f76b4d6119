from __future__ import annotations

import json

import numpy as np
import pytest
import pytrec_eval
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mmcl.evaluation import Scores, retrieval, retrieval_pairs
from mmcl.runtime.errors import MmclError


def test_hit_equals_a_few_lines_of_numpy_with_many_ties() -> None:
    rng = np.random.default_rng(0)
    image, text = rng.integers(-1, 2, (80, 3)), rng.integers(-1, 2, (80, 3))
    scores = image @ text.T
    own = np.diag(scores)[:, None]
    for k in (1, 3, 10):
        for direction, table in (("image_to_text", scores), ("text_to_image", scores.T)):
            hit = ((table >= own).sum(1) <= k).mean()  # everything that equals the right answer stands before it
            ours = retrieval_pairs(image, text, ks=(k,), similarity="dot", bootstrap=0)[direction]
            assert ours.metrics[f"hit@{k}"] == hit


def test_graded_judgements_by_hand() -> None:
    """Corpus order for the query is a, b, c, d; relevant are b (1), d (3) and x, which the corpus lacks (2)."""
    corpus = {"a": [4.0, 0], "b": [3.0, 0], "c": [2.0, 0], "d": [1.0, 0]}
    qrels = {"q": {"b": 1, "d": 3, "x": 2, "a": 0, "c": -1}, "unjudged": {}, "absent": {"a": 1}}
    queries = {"q": [1.0, 0], "unjudged": [1.0, 0], "nowhere": [0, 1.0]}
    scores = retrieval(queries, corpus, qrels, ks=(2, 4), similarity="dot")
    log = np.log2
    ideal = 3 + 2 / log(3)
    assert scores.metrics == pytest.approx(
        {
            "hit@2": 1, "hit@4": 1,
            "recall@2": 1 / 3, "recall@4": 2 / 3,
            "precision@2": 1 / 2, "precision@4": 1 / 2,
            "ndcg@2": (1 / log(3)) / ideal, "ndcg@4": (1 / log(3) + 3 / log(5)) / (ideal + 1 / log(4)),
            "map@2": (1 / 2) / 3, "map@4": (1 / 2 + 2 / 4) / 3,
            "map": (1 / 2 + 2 / 4) / 3, "mrr": 1 / 2, "median_rank": 2,
        }
    )  # fmt: skip
    assert (scores.queries, scores.corpus, scores.query_ids) == (1, 4, ["q"])
    assert (scores.skipped_queries, scores.missing_queries, scores.missing_documents) == (2, 1, 1)


@pytest.mark.parametrize("rule", ["keep", "drop"])
def test_queries_in_the_corpus_and_queries_without_relevant_documents_score_as_beir_scores_them(rule: str) -> None:
    """BEIR takes a query's own id out of the run (``ignore_identical_ids``) and gives the rest to trec_eval."""
    rng = np.random.default_rng(7)
    ids = [f"d{number}" for number in range(30)]
    corpus = dict(zip(ids, rng.standard_normal((30, 6)), strict=True))
    queries = {"q": corpus["d3"] + 0.1} | {key: corpus[key] for key in ids[:8]}
    qrels = {key: {str(d): int(rng.integers(0, 3)) for d in rng.choice(ids, 5)} for key in queries}
    qrels |= {"d1": {"d1": 2, "d9": 1}, "d2": {"d2": 1}, "d4": {"d7": 0, "d8": -1}}  # judged itself, and none relevant
    unit = {key: vector / np.linalg.norm(vector) for key, vector in {**corpus, **queries}.items()}
    run = {q: {d: float(unit[q] @ unit[d]) for d in ids if rule == "keep" or d != q} for q in queries}
    names = {
        "ndcg@10": "ndcg_cut_10",
        "recall@10": "recall_10",
        "map": "map",
        "mrr": "recip_rank",
        "hit@1": "success_1",
    }
    measures = {"ndcg_cut.10", "recall.10", "map", "recip_rank", "success.1"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    ours = retrieval(queries, corpus, qrels, ks=(1, 10), self_matches=rule)
    assert ours.query_ids == list(queries)
    for name, trec in names.items():
        np.testing.assert_allclose(ours.per_query[name], [theirs[q][trec] for q in queries], atol=1e-9, err_msg=name)
    assert (ours.queries_in_corpus, ours.queries_without_relevant, ours.self_matches) == (8, 1, rule)
    assert ours.candidates.tolist() == [30] + [29 if rule == "drop" else 30] * 8
    assert all(value == value for value in ours.chance().values())


def test_questions_are_not_found_by_themselves_among_questions_where_that_is_asked_for() -> None:
    """The first question stands among the answers, too; nearest to itself, and right for the second."""
    asked, answers = np.array([[1.0, 0], [0, 1.0]]), np.array([[0.9, 0.1], [1.0, 0]])
    names = {"ids": (["a", "b"], ["c", "a"]), "names": ("query", "document"), "ks": (1,)}
    kept, dropped = (retrieval_pairs(asked, answers, **names, self_matches=rule) for rule in ("keep", "drop"))
    way = "query_to_document"
    assert (kept[way].metrics["hit@1"], kept[way].queries_in_corpus) == (0, 1)
    assert dropped[way].per_query["hit@1"].tolist() == [1, 0]
    with pytest.raises(MmclError, match="query_to_document: no query has an answer but itself"):
        retrieval_pairs(asked, asked, ids=("ab", "ab"), names=("query", "document"), self_matches="drop")


def test_mappings_and_pairs_of_ids_and_vectors_give_the_same() -> None:
    rng = np.random.default_rng(1)
    queries, corpus = rng.standard_normal((9, 5)), rng.standard_normal((20, 5))
    qrels = {q: {int(d): int(g) for d, g in zip(rng.choice(20, 4), [1, 2, 3, 1], strict=True)} for q in range(9)}
    arrays = retrieval((range(9), queries), (np.arange(20), torch.from_numpy(corpus)), qrels)
    mappings = retrieval(dict(enumerate(queries)), dict(enumerate(torch.from_numpy(corpus))), qrels)
    assert arrays.to_dict() == mappings.to_dict()


def test_pairs_score_as_open_clips_training_measures_them() -> None:
    """Its ranks of the diagonal, of features without ties."""
    train = pytest.importorskip("open_clip_train.train", reason="open_clip's training code is not installed")
    rng = np.random.default_rng(9)
    text = F.normalize(torch.from_numpy(rng.standard_normal((61, 8))))
    image = F.normalize(text + 0.4 * torch.from_numpy(rng.standard_normal((61, 8))))
    theirs = train.get_clip_metrics(image, text, 100.0)
    for way, scores in retrieval_pairs(image, text, bootstrap=0).items():
        assert [scores.metrics[f"hit@{k}"] for k in (1, 5, 10)] == [theirs[f"{way}_R@{k}"] for k in (1, 5, 10)]
        assert np.mean(scores.per_query["median_rank"]) == pytest.approx(theirs[f"{way}_mean_rank"])
        assert scores.metrics["median_rank"] == theirs[f"{way}_median_rank"]


def test_arrays_alone_have_their_rows_as_ids() -> None:
    rng = np.random.default_rng(8)
    queries, corpus = rng.standard_normal((9, 5)), torch.from_numpy(rng.standard_normal((20, 5)))
    qrels = {str(q): {str(d): 1 for d in rng.choice(20, 4)} for q in range(9)}
    named = retrieval(([*map(str, range(9))], queries), ([*map(str, range(20))], corpus), qrels)
    assert retrieval(queries, corpus, qrels).to_dict() == named.to_dict()
    assert retrieval(queries, corpus, qrels).query_ids == [str(row) for row in range(9)]


def test_two_images_and_four_texts() -> None:
    image = np.array([[1.0, 0], [0, 1.0]])
    text = np.array([[1.0, 0], [0.9, 0.1], [0.1, 0.9], [0.95, 0.05]])  # the last is nearer to the wrong image
    scores = retrieval_pairs(image, text, [0, 0, 1, 1], ks=(1, 2))
    assert scores["image_to_text"].metrics["hit@1"] == 1
    assert scores["image_to_text"].metrics["recall@2"] == 0.5
    assert scores["text_to_image"].metrics["hit@1"] == 0.75
    assert scores["text_to_image"].metrics["precision@2"] == 0.5


def test_an_image_without_a_text_is_no_query_but_a_document() -> None:
    scores = retrieval_pairs(np.ones((3, 2)), np.ones((2, 2)), [0, 2], ks=(1, 3))
    assert (scores["image_to_text"].queries, scores["image_to_text"].skipped_queries) == (2, 1)
    assert scores["text_to_image"].corpus == 3
    assert scores["text_to_image"].metrics["median_rank"] == 3


def test_equal_ids_are_the_same_thing() -> None:
    """Against the dense definition: text j is right for image i if a text equal to j belongs to an image equal to i."""
    rng = np.random.default_rng(2)
    image, text = rng.standard_normal((12, 4)), rng.standard_normal((30, 4))
    owner, images, captions = rng.integers(0, 12, 30), rng.integers(0, 8, 12), rng.choice(list("abcdefghijk"), 30)
    right = np.zeros((12, 30), dtype=bool)
    for j, i in enumerate(owner):
        right |= (images == images[i])[:, None] & (captions == captions[j])[None]
    ours = retrieval_pairs(image, text, owner, ids=(images, list(captions)), similarity="dot")
    for scores, table, answers in (
        (ours["image_to_text"], image @ text.T, right),
        (ours["text_to_image"], text @ image.T, right.T),
    ):
        by_score = np.take_along_axis(answers, np.argsort(-table, axis=1), axis=1)
        by_score = by_score[answers.any(1)]
        assert scores.metrics["hit@5"] == by_score[:, :5].any(1).mean()
        assert scores.metrics["recall@5"] == pytest.approx((by_score[:, :5].sum(1) / by_score.sum(1)).mean())
        np.testing.assert_array_equal(scores.relevant, by_score.sum(1))


def random_scores(seed: int, extra: int = 0, **kwargs: object) -> Scores:
    rng = np.random.default_rng(seed)
    queries, corpus = rng.integers(-2, 3, (6, 3)), rng.integers(-2, 3, (12, 3))
    qrels = {q: {int(d): int(rng.integers(1, 4)) for d in rng.choice(12, 3, replace=False)} for q in range(6)}
    relevant = sorted({d for grades in qrels.values() for d in grades})
    corpus = np.concatenate([corpus, *[corpus[relevant]] * extra])  # equal to relevant documents, themselves unjudged
    return retrieval((range(6), queries), (range(len(corpus)), corpus), qrels, ks=range(1, 15), bootstrap=0, **kwargs)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["cosine", "dot", "euclidean"]))
def test_properties_that_must_hold(seed: int, similarity: str) -> None:
    scores = random_scores(seed, similarity=similarity)
    values = scores.metrics
    assert all(0 <= value <= 1 + 1e-12 for name, value in values.items() if name != "median_rank")
    for name in ("hit", "recall", "map"):
        assert all(values[f"{name}@{k}"] <= values[f"{name}@{k + 1}"] + 1e-12 for k in range(1, 14))
    assert all(values[f"recall@{k}"] <= values[f"hit@{k}"] for k in range(1, 15))
    assert values["recall@12"] == 1

    worse = random_scores(seed, extra=1, similarity=similarity).metrics
    assert all(worse[name] <= values[name] + 1e-12 for name in values if name != "median_rank")
    assert worse["mrr"] < values["mrr"]
    assert worse["median_rank"] > values["median_rank"]


def test_random_vectors_score_as_chance_says() -> None:
    rng = np.random.default_rng(3)
    owner = np.repeat(np.arange(500), 3)
    scores = retrieval_pairs(rng.standard_normal((500, 16)), rng.standard_normal((1500, 16)), owner, bootstrap=0)
    for direction in scores.values():
        for name, expected in direction.chance().items():
            assert direction.metrics[name] == pytest.approx(expected, abs=0.02)
    assert scores["image_to_text"].chance()["hit@10"] == pytest.approx(1 - (1490 / 1500) ** 3, rel=0.01)


def test_scores_are_json_and_intervals_hold_the_value() -> None:
    image = np.random.default_rng(4).standard_normal((100, 4))
    text = image + np.random.default_rng(5).standard_normal((100, 4))
    scores = retrieval_pairs(image, text, names=("user", "item"))["user_to_item"]
    saved = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert saved["metrics"] == scores.metrics
    for name, (low, high) in saved["intervals"].items():
        assert low <= scores.metrics[name] <= high
        assert low < high
    assert set(saved["intervals"]) == set(scores.metrics) == set(scores.per_query)


def test_a_query_whose_documents_are_all_missing_stays_finite() -> None:
    scores = retrieval({"q": [1.0], "r": [1.0]}, {"a": [1.0]}, {"q": {"a": 1}, "r": {"gone": 1}}, ks=(1,))
    assert scores.metrics["hit@1"] == 0.5
    assert scores.metrics["median_rank"] == 1.5  # the second stands after the whole corpus
    json.dumps(scores.to_dict(), allow_nan=False)


GOOD = ({"q": [1.0, 0.0]}, {"a": [1.0, 0.0], "b": [0.0, 1.0]}, {"q": {"a": 1}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: {}}, "queries: no vectors"),
        ({0: {"q": [1.0, 0.0, 0.0]}}, "queries have 3 dimensions and documents 2"),
        ({0: {"q": [float("nan"), 0.0]}}, "the vector of id 'q' has a NaN"),
        ({1: {"a": [1.0, 0.0], "b": [1.0]}}, "id 'b' has shape"),
        ({1: (["a", "a"], np.eye(2))}, "'a' stands twice"),
        ({1: (["a"], np.eye(2))}, "1 ids for 2 vectors"),
        ({1: [[1.0, 0.0]]}, "expected a mapping from id to vector, a pair \\(ids, array\\) or an array, not list"),
        ({1: np.eye(2)}, "qrels have ids such as 'a', the vectors such as '0'"),
        ({0: np.array([[np.nan, 0.0]])}, "the vector of id '0' has a NaN"),
        ({2: {"p": {"a": 1}}}, "qrels have ids such as 'p', the vectors such as 'q'"),
        ({2: {"q": {"z": 1}}}, "qrels have ids such as 'z', the vectors such as 'a'"),
        ({2: {"q": {"a": float("nan")}}}, "the grade of document 'a' for query 'q' is nan"),
        ({2: {"q": {"a": "high"}}}, "the grade of document 'a' for query 'q' is 'high', not a number"),
        ({2: {"q": ["a"]}}, "expected {query id: {document id: grade}}"),
        ({3: (0,)}, "ks: a cut-off is a whole number from 1 up, not 0"),
        ({3: ()}, "ks: give at least one"),
        ({3: (2.5,)}, "not 2.5"),
    ],
)
def test_bad_input_is_answered_in_one_line(change: dict, message: str) -> None:
    arguments = [change.get(number, value) for number, value in enumerate((*GOOD, (1,)))]
    with pytest.raises(MmclError, match=message) as caught:
        retrieval(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.eye(2), np.ones((3, 2))), "say with image_of_text"),
        ((np.eye(2), np.ones((3, 2)), [0, 1]), "expected 3 whole numbers"),
        ((np.eye(2), np.ones((3, 2)), [0, 1, 2]), "text 2 belongs to image 2, but they run from 0 to 1"),
        ((np.eye(2), np.array([[1.0, 0], [np.inf, 0]])), "the vector of row 1"),
    ],
)
def test_bad_pairs_are_answered_in_one_line(arguments: tuple, message: str) -> None:
    with pytest.raises(MmclError, match=message):
        retrieval_pairs(*arguments)
    with pytest.raises(MmclError, match="ids of text: 1 values for 2 rows"):
        retrieval_pairs(np.eye(2), np.eye(2), ids=(None, ["a"]))
