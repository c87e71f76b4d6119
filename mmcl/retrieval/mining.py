"""Hard negatives: which of the items most similar to an anchor become its negatives.

Everything is a pure function of vectors and of numbers that say what is the same thing. Similarity is the cosine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy import sparse

from mmcl.data.identity import uniforms
from mmcl.retrieval.index import VectorIndex

NEVER = -1  # in the place of an item or a rank: there is none
GATHERED = 1 << 24  # numbers of gathered vectors that are in memory at a time


@dataclass(frozen=True)
class Rules:
    """What passes as a negative, and how many are taken.

    Attributes:
        count: negatives of each anchor.
        depth: nearest items to choose from.
        skip: of these, so many of the nearest are left out, since false negatives are among them.
        choice: ``top``: the nearest of those that pass. ``semi_hard``: the same, less similar than the positive
            (FaceNet, Schroff et al. 2015, arXiv:1503.03832). ``random``: drawn from those that pass.
        margin: what passes is less similar than the positive by more than this (NV-Retriever, Moreira et al. 2024,
            arXiv:2407.15831, section 3.2: TopK-MarginPos).
        relative_margin: the same as a share of the positive's similarity (TopK-PercPos). Of a similarity below 0 it
            is the share of the absolute value, so that what passes is always less similar than the positive.
        max_score: what passes has at most this similarity.
    """

    count: int = 1
    depth: int = 100
    choice: Literal["top", "semi_hard", "random"] = "top"
    margin: float | None = None
    relative_margin: float | None = None
    max_score: float | None = None
    skip: int = 0

    def passing(self, scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
        """Which of the (Q, K) ``scores``, best first, pass beside those of the positives (Q,): bool (Q, K)."""
        passes = np.isfinite(scores)
        passes[:, : self.skip] = False
        margins = [self.margin] if self.margin is not None else []
        if self.choice == "semi_hard":
            margins.append(0.0)
        if self.relative_margin is not None:
            margins.append(self.relative_margin * np.abs(positive))
        for margin in margins:
            passes &= scores < (positive - margin)[:, None]
        return passes if self.max_score is None else passes & (scores <= self.max_score)

    def chosen(self, passes: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """(Q, count) places of those of the (Q, K) that pass which are taken, in order; -1 where too few do. What is
        drawn at random for a row follows from its seed, int64 (Q,)."""
        random = self.choice == "random"
        draws = uniforms(torch.from_numpy(seeds), passes.shape[1]).numpy() if random else None
        return pick(passes, self.count, draws)


class GuideVectors(NamedTuple):
    """What another model makes of the same things, unit vectors all: what it holds closer to an anchor than the
    anchor's positive is no negative.

    Attributes:
        anchors: (Q, E).
        corpus: (C, E).
        positive: (Q,) its similarity of anchor and positive.
    """

    anchors: np.ndarray
    corpus: np.ndarray
    positive: np.ndarray

    def closer(self, items: np.ndarray) -> np.ndarray:
        """Which of (Q, K) items it holds closer to their anchor than the positive: bool (Q, K)."""
        return similarity_to(self.anchors, self.corpus, items) > self.positive[:, None]


class Mined(NamedTuple):
    """Hard negatives of Q anchors.

    Attributes:
        items: (Q, count) int64 positions in the corpus, no two of a row the same.
        scores: (Q, count) float32 similarity to the anchor.
        ranks: (Q, count) int64 place among all items that could be a negative, by their similarity, from 0; -1 of one
            drawn at random from the whole corpus, since too few passed.
    """

    items: np.ndarray
    scores: np.ndarray
    ranks: np.ndarray


class KnownPositives:
    """What can never be a negative of a row: anything that is the same thing as its anchor or as one of its positives,
    or is paired with such a thing in any row.

    It is the losses' rule (things with an identity in common are none of each other's negatives) over all rows of the
    data, where a loss knows but the pairs that its batch brings. Kept as two sparse factors, since an anchor that comes
    m times has m² pairs of rows.

    Args:
        anchors: row (from 0) and identity of every anchor, (A,) each; a row may have several.
        positives: the same of the positives, (P,) each; they need not be in the corpus.
        corpus: (C,) identities; several items may be the same thing.
        count: number of rows.

    Attributes:
        partners: (count, C) sparse, not zero where an item is a positive of a row.
    """

    def __init__(
        self,
        anchors: tuple[np.ndarray, np.ndarray],
        positives: tuple[np.ndarray, np.ndarray],
        corpus: np.ndarray,
        count: int,
    ) -> None:
        things, codes = np.unique(np.concatenate([anchors[1], positives[1], corpus]), return_inverse=True)
        of_anchors, of_positives, of_corpus = np.split(codes, np.cumsum([len(anchors[1]), len(positives[1])]))
        itself = _ones(of_corpus, np.arange(len(corpus)), (len(things), len(corpus)))
        anchor_things = _ones(anchors[0], of_anchors, (count, len(things)))
        positive_things = _ones(positives[0], of_positives, (count, len(things)))
        self.partners = (positive_things @ itself).tocsr()
        self._things = anchor_things + positive_things
        self._items = itself + anchor_things.T @ self.partners

    def of(self, rows: np.ndarray) -> sparse.csr_array:
        """(len(rows), C), not zero where an item can be no negative of a row."""
        found = (self._things[rows] @ self._items).tocsr()
        found.sort_indices()
        return found

    def similarity(self, rows: np.ndarray, anchors: np.ndarray, corpus: np.ndarray) -> np.ndarray:
        """(len(rows),) float32: of each row's anchor to its positive; of several, to the least similar. All positives
        are in the corpus.

        Args:
            rows: numbers of rows.
            anchors: (len(rows), D) unit vectors of their anchors.
            corpus: (C, D) unit vectors.
        """
        partners = self.partners[rows]
        owner = np.repeat(np.arange(len(rows)), np.diff(partners.indptr))
        scores = np.einsum("pd,pd->p", anchors[owner], corpus[partners.indices])
        return np.minimum.reduceat(scores, partners.indptr[:-1])


def mine(
    index: VectorIndex,
    corpus: np.ndarray,
    anchors: np.ndarray,
    positive: np.ndarray,
    known: sparse.csr_array,
    rules: Rules,
    seeds: np.ndarray,
    guide: GuideVectors | None = None,
) -> Mined:
    """The hard negatives of some anchors.

    Args:
        index: of the corpus, by cosine; its ids are positions.
        corpus: (C, D) unit vectors.
        anchors: (Q, D) unit vectors.
        positive: (Q,) similarity of each anchor to its positive.
        known: (Q, C), not zero where an item can be no negative of an anchor; it leaves each at least ``rules.count``.
        rules: what passes.
        seeds: (Q,) int64: all that is drawn at random for an anchor follows from its own.
        guide: what another model makes of the same.
    """
    items, scores = nearest_others(lambda k: index.search(anchors, k), rules.depth, known)
    passes = rules.passing(scores, positive)
    if guide is not None:
        passes &= ~guide.closer(items)
    ranks = rules.chosen(passes, seeds)
    found = ranks >= 0
    chosen = np.where(found, np.take_along_axis(items, np.maximum(ranks, 0), axis=1), NEVER)
    chosen = filled_up(chosen, known, seeds)
    similarity = np.take_along_axis(scores, np.maximum(ranks, 0), axis=1)
    row, place = np.nonzero(~found)
    similarity[row, place] = np.einsum("md,md->m", anchors[row], corpus[chosen[row, place]])
    return Mined(chosen, similarity, ranks)


def nearest_others(
    search: Callable[[int], tuple[np.ndarray, np.ndarray]], depth: int, known: sparse.csr_array
) -> tuple[np.ndarray, np.ndarray]:
    """The ``depth`` most similar items that can be an anchor's negatives, best first.

    Args:
        search: gives positions (Q, k) and scores (Q, k) of the ``k`` items nearest to each anchor; fewer if there are.
        depth: how many.
        known: (Q, C), not zero where an item can be no negative of an anchor.

    Returns:
        positions (Q, depth) int64 and scores (Q, depth) float32; -∞ and any position where there are fewer.
    """
    width = known.shape[1]
    ids, scores = search(depth + int(np.diff(known.indptr).max(initial=0)))
    items = np.where(np.isneginf(scores), 0, ids).astype(np.int64)  # an approximate index may find fewer
    rows = np.arange(len(scores))
    owned = np.repeat(rows, np.diff(known.indptr)) * width + known.indices
    scores = np.where(np.isin(rows[:, None] * width + items, owned), np.float32(-np.inf), scores)
    items = np.pad(items, ((0, 0), (0, max(0, depth - items.shape[1]))))
    scores = np.pad(scores, ((0, 0), (0, items.shape[1] - scores.shape[1])), constant_values=-np.inf)
    order = np.argsort(np.isneginf(scores), axis=1, kind="stable")[:, :depth]
    return np.take_along_axis(items, order, axis=1), np.take_along_axis(scores, order, axis=1)


def search_by_index(index: VectorIndex, corpus: Any, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """What an index finds nearest, with cosines of the vectors themselves: it may hold codes, whose products with a
    query are off by more than rules and thresholds are fine.

    Args:
        index: of the corpus, by cosine or product; its ids are positions.
        corpus: (C, D) unit vectors, as for :func:`similarity_to`.
        queries: (Q, D) unit vectors.
        k: items for each.

    Returns:
        positions (Q, k) int64 and scores (Q, k) float32, best first; -∞ and position 0 where the index reaches fewer.
    """
    ids, approximate = index.search(queries, k)
    missing = np.isneginf(approximate)
    items = np.where(missing, 0, ids).astype(np.int64)
    scores = similarity_to(queries, corpus, items)
    scores[missing] = -np.inf
    order = np.lexsort((items, -scores))
    return np.take_along_axis(items, order, axis=1), np.take_along_axis(scores, order, axis=1)


def similarity_to(vectors: np.ndarray, corpus: Any, items: np.ndarray) -> np.ndarray:
    """(Q, K) float32 products of each of (Q, D) ``vectors`` with its own (Q, K) ``items`` of a corpus, which is (C, D)
    or gives (…, D) vectors by their positions (…)."""
    products = np.empty(items.shape, np.float32)
    step = max(1, GATHERED // max(1, items.shape[1] * vectors.shape[1]))
    for start in range(0, len(items), step):
        part = slice(start, start + step)
        products[part] = np.einsum("qd,qkd->qk", vectors[part], corpus[items[part]])
    return products


def pick(passes: np.ndarray, count: int, draws: np.ndarray | None = None) -> np.ndarray:
    """``count`` places of each row of ``passes`` (Q, depth) that are true, in order; -1 at the end where fewer are.

    They are the first ones or, with ``draws`` (Q, depth) in [0, 1), those whose draws are smallest. ``count`` is at
    most the depth.
    """
    keys = np.broadcast_to(np.arange(passes.shape[1]), passes.shape) if draws is None else draws
    places = np.argsort(np.where(passes, keys, np.inf), axis=1, kind="stable")[:, :count]
    places = np.sort(np.where(np.take_along_axis(passes, places, axis=1), places, passes.shape[1]), axis=1)
    return np.where(places < passes.shape[1], places, NEVER)


def filled_up(items: np.ndarray, known: sparse.csr_array, seeds: np.ndarray) -> np.ndarray:
    """``items`` (Q, count) with other ones, drawn at random from those that can be the row's negatives, where they
    are -1."""
    items = items.copy()
    for row in np.flatnonzero((items == NEVER).any(axis=1)):
        missing = items[row] == NEVER
        taken = np.union1d(known.indices[known.indptr[row] : known.indptr[row + 1]], items[row][~missing])
        # Drawn are numbers among the items not taken; each is moved past those taken before it.
        generator = np.random.default_rng(int(seeds[row]) % 2**64)
        drawn = generator.choice(known.shape[1] - len(taken), missing.sum(), replace=False)
        items[row, missing] = drawn + np.searchsorted(taken - np.arange(len(taken)), drawn, side="right")
    return items


def _ones(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    return sparse.csr_array((np.ones(len(rows), np.int32), (rows, columns)), shape=shape)
