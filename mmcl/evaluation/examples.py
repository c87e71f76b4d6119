"""Single queries to look at: what is found for some, and those that prefer a wrong answer by most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BLOCK = 1024  # queries compared with all documents at once


@dataclass(frozen=True)
class Example:
    """A query and its nearest documents.

    Attributes:
        query: its row.
        documents: (k,) rows of the nearest documents, best first.
        scores: (k,) their similarities.
        right: (k,) whether each is a right answer.
    """

    query: int
    documents: np.ndarray
    scores: np.ndarray
    right: np.ndarray


@dataclass(frozen=True)
class WrongAnswer:
    """A query that is nearer to a wrong document than to all of its own.

    Attributes:
        query: its row.
        nearest: row of the nearest document, a wrong one.
        right: row of the nearest right document.
        score: similarity to ``nearest``.
        score_of_right: similarity to ``right``.
        rank_of_right: 1-based rank of ``right``, a tie counting against it.
    """

    query: int
    nearest: int
    right: int
    score: float
    score_of_right: float
    rank_of_right: int


def examples(
    queries: np.ndarray,
    documents: np.ndarray,
    answers: Sequence[np.ndarray],
    *,
    count: int,
    k: int,
    seed: int = 0,
) -> list[Example]:
    """The nearest documents of queries drawn at random.

    Args:
        queries: (Q, D) unit vectors.
        documents: (N, D) unit vectors.
        answers: for each query the rows of its right documents.
        count: of queries.
        k: documents for each.
        seed: of the draw.
    """
    drawn = np.sort(np.random.default_rng(seed).permutation(len(queries))[:count])
    found = []
    for query in drawn.tolist():
        scores = documents @ queries[query]
        nearest = np.argsort(-scores, kind="stable")[:k]
        found.append(Example(query, nearest, scores[nearest], np.isin(nearest, answers[query])))
    return found


def worst_answers(
    queries: np.ndarray, documents: np.ndarray, answers: Sequence[np.ndarray], *, count: int
) -> list[WrongAnswer]:
    """The queries that prefer a wrong document by most: what the model is surest of, and should not be.

    Args:
        queries: (Q, D) unit vectors.
        documents: (N, D) unit vectors.
        answers: for each query the rows of its right documents, one or more.
        count: of wrong answers, at most.
    """
    wrong: list[WrongAnswer] = []
    for start in range(0, len(queries), _BLOCK):
        scores = queries[start : start + _BLOCK] @ documents.T
        for row, similar in enumerate(scores):
            own = answers[start + row]
            right = int(own[similar[own].argmax()])
            nearest = int(similar.argmax())
            if similar[nearest] > similar[right]:
                rank = int((similar >= similar[right]).sum())
                values = float(similar[nearest]), float(similar[right])
                wrong.append(WrongAnswer(start + row, nearest, right, *values, rank))
        wrong = sorted(wrong, key=lambda answer: answer.score_of_right - answer.score)[:count]
    return wrong
