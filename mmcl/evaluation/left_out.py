"""What is not ranked for a query: the query itself where it stands in the corpus, and what it has seen."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from mmcl.runtime.errors import MmclError, nearest

SelfMatches: TypeAlias = Literal["keep", "drop"]
"""Of a query that stands in the corpus itself: rank it like any other document, or leave it out of its own ranking."""


WITHOUT_OWN = "-without-own"
"""Ends ``Scores.data`` where queries were left out of their own ranking."""


@dataclass(frozen=True)
class OwnMatches:
    """Which queries stand in the corpus themselves, and what is to be done about it."""

    rule: SelfMatches
    rows: np.ndarray
    """Of these queries."""
    left_out: np.ndarray
    """(2, P) queries and the documents that are not ranked for them."""

    @classmethod
    def of(cls, queries: Sequence[Hashable], corpus: Sequence[Hashable], rule: SelfMatches) -> OwnMatches:
        """From what each is called; what has the same name is the same thing."""
        wanted, places = set(queries), dict[Hashable, list[int]]()
        for place, name in enumerate(corpus):
            if name in wanted:
                places.setdefault(name, []).append(place)
        rows = [row for row, name in enumerate(queries) if name in places]
        pairs = [(row, place) for row in rows for place in places[queries[row]]] if rule == "drop" else []
        return cls(rule, np.array(rows, dtype=np.int64), np.array(pairs, dtype=np.int64).reshape(-1, 2).T)


def matches_both_ways(
    first: list[Hashable] | None, second: list[Hashable] | None, rule: SelfMatches, names: tuple[str, str]
) -> tuple[OwnMatches, OwnMatches]:
    """Of the first kind among the second, and of the second among the first; none where a kind has no ids."""
    if first is not None and second is not None:
        return OwnMatches.of(first, second, rule), OwnMatches.of(second, first, rule)
    if rule == "drop":
        raise MmclError(
            f"self_matches: 'drop' needs the ids of {names[0]} and of {names[1]}, which say what is the same thing"
        )
    none = OwnMatches.of((), (), "keep")
    return none, none


def check_self_matches(rule: str) -> None:
    """Raise ``MmclError`` unless there is such a rule."""
    if rule not in get_args(SelfMatches):
        raise MmclError(f"self_matches '{rule}': no such rule; {nearest(rule, get_args(SelfMatches))}")


def excluded_pairs(seen: Mapping[Any, Iterable[Hashable]], query_ids: list[Any], corpus_ids: list[Any]) -> np.ndarray:
    """(2, P) rows of queries and of the documents that are excluded from their rankings."""
    row = {key: number for number, key in enumerate(corpus_ids)}
    pairs = [
        (query, row[document])
        for query, key in enumerate(query_ids)
        for document in seen.get(key, ())
        if document in row
    ]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2).T
