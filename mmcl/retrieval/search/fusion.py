"""One ranking from several: by their ranks, or by their scores."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from mmcl.encoding.corpora.stored import Stored, read_description, validated, write_description
from mmcl.runtime.errors import MmclError

CONSTANT = 60
"""Of reciprocal rank fusion, as in its paper."""
_FORMAT, _VERSION = "mmcl fusion", 1


class Ranking(NamedTuple):
    """What was found for Q queries, best first.

    Attributes:
        ids: (Q, n); None where nothing more was found.
        scores: (Q, n); higher is better.
        floor: the score of what a ranking lacks that ends before n; else what it lacks counts as the last in it.
    """

    ids: np.ndarray
    scores: np.ndarray
    floor: float | None = None


@dataclass(frozen=True)
class Fusion:
    """How the rankings by vectors and by words become one.

    Attributes:
        weights: of the scores by vectors and by words, see :func:`weighted`; None for :func:`reciprocal_rank`.
        depth: how many of each ranking take part.
        learned: what the weights were learned on and what they gave there, in values that JSON can hold; empty if they
            were not.
    """

    weights: tuple[float, float] | None = None
    depth: int = 100
    learned: Mapping[str, Any] = field(default_factory=dict)

    def fuse(self, rankings: Sequence[Ranking], k: int) -> Ranking:
        """The k best, ids and scores (Q, k), of rankings by vectors and by words."""
        return reciprocal_rank(rankings, k) if self.weights is None else weighted(rankings, self.weights, k)

    @classmethod
    def parse(cls, text: str) -> Fusion:
        """From the command line: ``rrf``, or two weights such as ``0.7,0.3``.

        Raises:
            MmclError: it is neither.
        """
        if text == "rrf":
            return cls()
        try:
            dense, lexical = (float(number) for number in text.split(","))
        except ValueError:
            dense = lexical = math.nan
        if not (math.isfinite(dense) and math.isfinite(lexical) and min(dense, lexical) >= 0 < max(dense, lexical)):
            raise MmclError(f"--fusion {text}: give rrf, or the weights of vectors and of words, such as 0.7,0.3")
        return cls((dense, lexical))

    def save(self, path: Path) -> None:
        """Write a JSON file, completely or not at all."""
        content = {"weights": self.weights, "depth": self.depth, "learned": dict(self.learned)}
        write_description(path, _FORMAT, _VERSION, content)

    @classmethod
    def load(cls, path: Path) -> Fusion:
        """Read what :meth:`save` wrote. Raises ``MmclError`` if it is damaged or a newer mmcl wrote it."""
        cure = f"delete {path.name}"
        stored = validated(_Stored, read_description(path, _FORMAT, _VERSION, cure), path, cure)
        return cls(
            None if stored.weights is None else (stored.weights[0], stored.weights[1]), stored.depth, stored.learned
        )


class _Stored(Stored):
    weights: Annotated[list[float], Field(min_length=2, max_length=2)] | None
    depth: Annotated[int, Field(ge=1)]
    learned: dict[str, Any]


def reciprocal_rank(
    rankings: Sequence[Ranking], k: int, *, weights: Sequence[float] | None = None, constant: float = CONSTANT
) -> Ranking:
    """Reciprocal rank fusion (Cormack, Clarke and Büttcher 2009): the sum over the rankings of
    weight / (constant + rank), with ranks from 1. Needs no scores that can be compared, and nothing learned.

    Args:
        rankings: M, of the same Q queries.
        k: how many come back.
        weights: of the rankings; 1 each if absent.
        constant: how little the first ranks count more than later ones.

    Returns:
        Ids and scores (Q, k). Equal scores stand in the order of the first ranking that has them.

    Raises:
        MmclError: rankings of different numbers of queries, or not as many weights.
    """
    ranks = [np.arange(1, ranking.ids.shape[1] + 1) for ranking in rankings]
    points = [
        np.broadcast_to(1 / (constant + rank), ranking.ids.shape) for rank, ranking in zip(ranks, rankings, strict=True)
    ]
    return fused(rankings, points, [1.0] * len(rankings) if weights is None else weights, k)


def weighted(rankings: Sequence[Ranking], weights: Sequence[float], k: int) -> Ranking:
    """The weighted sum of scores (Bruch, Gai and Ingber 2023, arXiv:2210.11934), those of each ranking and query
    scaled so that its best is 1 and what it did not find 0.

    Args:
        rankings: M, of the same Q queries.
        weights: M numbers, such as :func:`mmcl.evaluation.rankings.learn_weights` finds.
        k: how many come back.

    Returns:
        As :func:`reciprocal_rank`.

    Raises:
        MmclError: see there.
    """
    return fused(rankings, [scaled(ranking) for ranking in rankings], weights, k)


def scaled(ranking: Ranking) -> np.ndarray:
    """(Q, n) float64 scores between 0, of what was not found, and 1, of the best one."""
    scores = ranking.scores.astype(np.float64)
    there = np.isfinite(scores)
    best = np.max(scores, axis=1, keepdims=True, initial=-np.inf, where=there)
    floor = np.min(scores, axis=1, keepdims=True, initial=np.inf, where=there)
    if ranking.floor is not None:
        floor[~there.all(axis=1)] = ranking.floor
    span = best - floor
    out = np.zeros_like(scores)
    np.divide(scores - floor, span, out=out, where=there & (span > 0))
    out[there & np.broadcast_to(span <= 0, scores.shape)] = 1.0  # all alike
    return out


def fused(rankings: Sequence[Ranking], points: Sequence[np.ndarray], weights: Sequence[float], k: int) -> Ranking:
    """The k best by the weighted sum of the points that each ranking gives, (Q, n) each; 0 of what it lacks.

    Raises:
        MmclError: rankings of different numbers of queries, or not as many weights.
    """
    counts = {len(ranking.ids) for ranking in rankings}
    if len(counts) != 1 or len(weights) != len(rankings):
        raise MmclError(
            f"fusion: {len(rankings)} rankings of {' and '.join(map(str, sorted(counts))) or 'no'} queries, "
            f"{len(weights)} weights; give rankings of the same queries, and a weight for each"
        )
    (queries,) = counts
    ids = np.full((queries, k), None, dtype=object)
    scores = np.full((queries, k), -np.inf)
    for query in range(queries):
        totals: dict[Hashable, float] = {}
        for ranking, of, weight in zip(rankings, points, weights, strict=True):
            found: dict[Hashable, float] = {}
            for name, point in zip(ranking.ids[query].tolist(), of[query].tolist(), strict=True):
                if name is not None:
                    found.setdefault(name, point)  # of several vectors of one thing the best
            for name, point in found.items():
                totals[name] = totals.get(name, 0.0) + weight * point
        best = sorted(totals, key=totals.__getitem__, reverse=True)[:k]
        ids[query, : len(best)], scores[query, : len(best)] = best, [totals[name] for name in best]
    return Ranking(ids, scores)
