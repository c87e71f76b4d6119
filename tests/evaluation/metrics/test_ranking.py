from __future__ import annotations

import importlib
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcl.evaluation.metrics.ranking import MISSING, Judgements, relevant_ranks
from mmcl.runtime.errors import MmclError

ranking = importlib.import_module("mmcl.evaluation.metrics.ranking")


def judge(grades: np.ndarray) -> Judgements:
    """Judgements from a dense (Q, C) matrix of grades."""
    query, document = np.nonzero(grades > 0)
    offsets = np.append(0, np.cumsum(np.bincount(query, minlength=len(grades))))
    return Judgements(offsets, document, grades[query, document].astype(float))


def exact_scores(queries: np.ndarray, corpus: np.ndarray, similarity: str) -> np.ndarray:
    """(Q, C) rational numbers in the order of the similarity, for vectors of integers: no rounding anywhere."""
    scores = np.empty((len(queries), len(corpus)), dtype=object)
    for q, query in enumerate(queries.tolist()):
        for c, document in enumerate(corpus.tolist()):
            dot = sum(x * y for x, y in zip(query, document, strict=True))
            length = sum(y * y for y in document)
            if similarity == "cosine":
                scores[q, c] = Fraction(dot * abs(dot), length) if length else Fraction(0)
            elif similarity == "euclidean":
                scores[q, c] = Fraction(2 * dot - length)
            else:
                scores[q, c] = Fraction(dot)
    return scores


def reference_ranks(queries: np.ndarray, corpus: np.ndarray, grades: np.ndarray, similarity: str) -> np.ndarray:
    """Sort the whole corpus, best score first and among equals the lowest grade first."""
    ranks = []
    for row, grade in zip(exact_scores(queries, corpus, similarity), grades, strict=True):
        order = sorted(range(len(corpus)), key=lambda c: (-row[c], grade[c]))
        ranks += [order.index(c) + 1 for c in np.flatnonzero(grade > 0)]
    return np.array(ranks, dtype=float)


def same_up_to_equal_documents(a: np.ndarray, b: np.ndarray, judgements: Judgements) -> bool:
    """Equal documents of equal grade may swap their ranks."""
    order = np.lexsort((a, judgements.grades, judgements.queries))
    other = np.lexsort((b, judgements.grades, judgements.queries))
    return np.array_equal(a[order], b[other])


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("density", [0.1, 0.9])  # few and many relevant documents: comparisons and binary search
def test_ranks_equal_a_full_sort_with_many_ties(similarity: str, density: float) -> None:
    rng = np.random.default_rng(0)
    queries, corpus = rng.integers(-2, 3, (20, 3)), rng.integers(-2, 3, (60, 3))
    grades = rng.integers(1, 4, (20, 60)) * (rng.random((20, 60)) < density)
    judgements = judge(grades)
    ranks = relevant_ranks(queries, corpus, judgements, similarity=similarity, query_rows=7, corpus_rows=11)
    assert same_up_to_equal_documents(ranks, reference_ranks(queries, corpus, grades, similarity), judgements)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_ranks_do_not_depend_on_the_blocks(similarity: str) -> None:
    rng = np.random.default_rng(1)
    queries, corpus = (rng.standard_normal((n, 33)).astype(np.float32) for n in (23, 61))
    corpus[31:] = corpus[:30]  # every document twice
    judgements = judge(rng.random((23, 61)) < 0.05)
    at_once = relevant_ranks(queries, corpus, judgements, similarity=similarity, query_rows=1000, corpus_rows=1000)
    for query_rows, corpus_rows in ((1, 9), (5, 7), (16, 60), (22, 13)):
        blocks = relevant_ranks(
            queries, corpus, judgements, similarity=similarity, query_rows=query_rows, corpus_rows=corpus_rows
        )
        np.testing.assert_array_equal(blocks, at_once)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_a_duplicate_of_the_relevant_document_ranks_before_it(similarity: str) -> None:
    rng = np.random.default_rng(2)
    queries = rng.standard_normal((100, 64)).astype(np.float32)
    corpus = queries + 0.01 * rng.standard_normal((100, 64)).astype(np.float32)
    one = Judgements(np.arange(101), np.arange(100), np.ones(100))
    alone = relevant_ranks(queries, corpus, one, similarity=similarity, corpus_rows=17)
    doubled = relevant_ranks(queries, np.concatenate([corpus, corpus]), one, similarity=similarity, corpus_rows=17)
    np.testing.assert_array_equal(doubled, 2 * alone)


def test_euclidean_tells_near_neighbours_apart_far_from_the_origin() -> None:
    rng = np.random.default_rng(3)
    corpus = 1000 + rng.standard_normal((200, 8))
    queries = corpus + 1e-3 * rng.standard_normal((200, 8))
    distances = np.linalg.norm(queries[:, None] - corpus[None], axis=2)
    expected = 1 + (distances < np.diag(distances)[:, None]).sum(1)
    ranks = relevant_ranks(
        queries, corpus, Judgements(np.arange(201), np.arange(200), np.ones(200)), similarity="euclidean"
    )
    np.testing.assert_array_equal(ranks, expected)


@pytest.mark.parametrize(("similarity", "gap"), [("dot", 1e-8), ("euclidean", 1e-4)])
def test_what_float32_tells_apart_is_no_tie(similarity: str, gap: float) -> None:
    corpus, queries = np.array([[1 - gap, 0], [1.0, 0], [-1.0, 0]]), np.array([[1.0, 0]])
    assert relevant_ranks(queries, corpus, judge(np.array([[0, 1, 0]])), similarity=similarity) == 1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_collapsed_model_is_ranked_last(value: float) -> None:
    vectors = np.full((50, 4), value)
    ranks = relevant_ranks(vectors, vectors, Judgements(np.arange(51), np.arange(50), np.ones(50)), corpus_rows=9)
    assert (ranks == 50).all()


def test_missing_documents_are_never_found_and_empty_queries_need_nothing() -> None:
    vectors = np.eye(3)
    judgements = Judgements(np.array([0, 2, 2, 3]), np.array([MISSING, 0, MISSING]), np.ones(3))
    assert relevant_ranks(vectors, vectors, judgements).tolist() == [np.inf, 1, np.inf]


def test_memory_is_one_block_of_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    original = ranking._fixed_point

    def watched(scores: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, scores.numel())
        return original(scores)

    monkeypatch.setattr(ranking, "_fixed_point", watched)
    monkeypatch.setattr(ranking, "_PAIR_ELEMENTS", 160)
    vectors = np.random.default_rng(4).standard_normal((60, 16))
    one = Judgements(np.arange(61), np.arange(60), np.ones(60))
    relevant_ranks(vectors, vectors, one, query_rows=10, corpus_rows=20)
    assert largest == 200


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["cosine", "dot", "euclidean"]))
def test_the_order_of_the_corpus_does_not_matter(seed: int, similarity: str) -> None:
    rng = np.random.default_rng(seed)
    queries, corpus = rng.integers(-1, 2, (4, 3)), rng.integers(-1, 2, (15, 3))
    grades = rng.integers(0, 3, (4, 15))
    shuffled = rng.permutation(15)
    judgements, permuted = judge(grades), judge(grades[:, shuffled])
    ranks = relevant_ranks(queries, corpus, judgements, similarity=similarity, corpus_rows=4)
    again = relevant_ranks(queries, corpus[shuffled], permuted, similarity=similarity, corpus_rows=6)
    order = np.lexsort((ranks, judgements.grades, judgements.queries))
    other = np.lexsort((again, permuted.grades, permuted.queries))
    np.testing.assert_array_equal(ranks[order], again[other])


def test_tensors_arrays_and_memory_maps_give_the_same(tmp_path) -> None:
    vectors = np.random.default_rng(5).standard_normal((40, 8)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    one = Judgements(np.arange(41), np.arange(40)[::-1].copy(), np.ones(40))
    expected = relevant_ranks(vectors, vectors, one)
    np.testing.assert_array_equal(relevant_ranks(mapped, mapped, one), expected)
    np.testing.assert_array_equal(relevant_ranks(torch.from_numpy(vectors), torch.from_numpy(vectors), one), expected)


def test_unknown_similarity_names_the_nearest() -> None:
    with pytest.raises(MmclError, match="did you mean 'cosine'"):
        relevant_ranks(np.eye(2), np.eye(2), Judgements(np.arange(3), np.arange(2), np.ones(2)), similarity="cosin")
    with pytest.raises(MmclError, match="float64"):
        relevant_ranks(np.eye(2), np.eye(2), Judgements(np.arange(3), np.arange(2), np.ones(2)), device="mps")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["cosine", "dot", "euclidean"]))
def test_an_order_of_ties_decides_among_equal_documents(seed: int, similarity: str) -> None:
    """Against the sorted table of fixed-point scores."""
    rng = np.random.default_rng(seed)
    queries, corpus = rng.integers(-1, 2, (5, 3)).astype(float), rng.integers(-1, 2, (24, 3)).astype(float)
    order = rng.permutation(24)
    grades = rng.integers(0, 3, (5, 24))
    ranks = relevant_ranks(
        queries, corpus, judge(grades), similarity=similarity, tie_order=order, query_rows=2, corpus_rows=7
    )
    scores = -np.linalg.norm(queries[:, None] - corpus, axis=2) if similarity == "euclidean" else queries @ corpus.T
    if similarity == "cosine":
        scores = scores / np.maximum(np.linalg.norm(corpus, axis=1), 1e-9)
    expected = []
    for row, grade in zip(scores.round(9), grades, strict=True):
        place = np.empty(24, int)
        place[np.lexsort((order, -row))] = np.arange(1, 25)
        expected += place[np.flatnonzero(grade)].tolist()
    assert ranks.tolist() == expected
