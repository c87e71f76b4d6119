"""What a search found, with what the index knows of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mmcl.retrieval.index import Hits, VectorIndex
from mmcl.retrieval.search.fusion import Ranking


@dataclass(frozen=True)
class Result:
    """A thing that was found.

    Attributes:
        rank: from 1, the best.
        score: the higher the better: its similarity to the query, or what the fusion made of several rankings.
        id: its id in the index.
        label: what to show for it, if the index knows.
        columns: what else the index holds of it, by column.
    """

    rank: int
    score: float
    id: int | str
    label: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; ``columns`` only where there are some."""
        first = {"rank": self.rank, "score": self.score, "id": self.id, "label": self.label}
        return first | ({"columns": self.columns} if self.columns else {})


class Nearest(NamedTuple):
    """The vectors nearest to Q queries.

    Attributes:
        ranking: their ids and scores.
        rows: metadata of vectors, in an order of its own.
        numbers: of each query's results, in order, their numbers in ``rows``.
    """

    ranking: Ranking
    rows: pa.Table
    numbers: list[list[int]]


def nearest(
    index: VectorIndex, vectors: np.ndarray, k: int, where: str | None, without: Sequence[Collection[str]]
) -> Nearest:
    """The k most similar for each of (Q, D) vectors, but for the ids (as text) that are left out of each."""
    deep = k + max(map(len, without), default=0)
    while True:
        asked = min(deep, len(index))
        hits = index.hits(vectors, asked, where=where)
        width = hits.ids.shape[1]
        kept = [
            [place for place, name in enumerate(names) if name is not None and str(name) not in out]
            for names, out in zip(hits.ids.tolist(), without, strict=True)
        ]
        # An id may stand for many vectors, so that less than k may be left without it.
        enough = not any(without) or all(len(places) >= k for places in kept)
        if enough or asked == len(index) or width < asked:
            kept = [places[:k] for places in kept]
            numbers = [[row * width + place for place in places] for row, places in enumerate(kept)]
            return Nearest(_ranking(hits, kept, k), hits.rows, numbers)
        deep *= 4


def results(index: VectorIndex, ranking: Ranking, near: Nearest, where: str | None = None) -> list[list[Result]]:
    """Each query's results, with what the index knows of the vector that was found; of an id that words alone found, of
    its first vector that fulfils the condition."""
    found: list[list[tuple[Any, float, int | None]]] = []
    for names, scores, numbers in zip(ranking.ids.tolist(), ranking.scores.tolist(), _by_id(near), strict=True):
        there = [(name, score) for name, score in zip(names, scores, strict=True) if name is not None]
        found.append([(name, score, numbers[name].pop(0) if numbers.get(name) else None) for name, score in there])
    by_words = list(dict.fromkeys(name for row in found for name, _, number in row if number is None))
    of_words = dict(zip(by_words, index.rows(by_words, where=where).to_pylist() if by_words else [], strict=True))
    by_vectors = [number for row in found for _, _, number in row if number is not None]
    of_vectors = dict(zip(by_vectors, near.rows.take(pa.array(by_vectors, pa.int64())).to_pylist(), strict=True))
    return [
        [
            _result(rank, score, name, of_words[name] if number is None else of_vectors[number])
            for rank, (name, score, number) in enumerate(row, 1)
        ]
        for row in found
    ]


def _by_id(near: Nearest) -> list[dict[Any, list[int]]]:
    """Of each query {id: numbers of its vectors in ``near.rows``, best first}."""
    found: list[dict[Any, list[int]]] = [{} for _ in near.numbers]
    for of, names, numbers in zip(found, near.ranking.ids.tolist(), near.numbers, strict=True):
        for name, number in zip(names[: len(numbers)], numbers, strict=True):
            of.setdefault(name, []).append(number)
    return found


def _ranking(hits: Hits, kept: Sequence[Sequence[int]], k: int) -> Ranking:
    """The hits of each query at the places that are kept."""
    ids, scores = np.full((len(kept), k), None, dtype=object), np.full((len(kept), k), -np.inf, dtype=np.float32)
    for row, places in enumerate(kept):
        ids[row, : len(places)] = hits.ids[row, places].tolist()
        scores[row, : len(places)] = hits.scores[row, places]
    return Ranking(ids, scores)


def _result(rank: int, score: float, name: Any, row: dict[str, Any]) -> Result:
    columns = {column: value for column, value in row.items() if column not in ("id", "label")}
    return Result(rank, score, name, row.get("label"), columns)
