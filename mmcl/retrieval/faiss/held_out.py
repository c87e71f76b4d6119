"""Queries with their true neighbours in an index, by which its recall is measured as it changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
from safetensors.numpy import load_file, save_file

from mmcl.losses.logits.similarity import Similarity
from mmcl.retrieval.exact import exact_search
from mmcl.retrieval.faiss.specs import METRICS
from mmcl.runtime.errors import MmclError

QUERIES = 1_000
"""Vectors that are asked for their nearest, and as many points halfway between two of them."""
K = 10
"""Recall is that of the ten nearest."""
_KNOWN = 100
_SEED = 1
_PARTS = ("queries", "own", "kinds", "positions", "scores")
Search = Callable[[np.ndarray, int], np.ndarray]
"""Of queries (Q, D) and k, the positions (Q, k) of what is found; -1 where it is less."""


def recalls(found: np.ndarray, nearest: np.ndarray, k: int) -> np.ndarray:
    """(Q,) share of the k nearest that (Q, k) ``found`` holds, where (Q, M) ``nearest`` may hold more that share the
    k-th place, and -1 after fewer."""
    hits = ((found[:, :, None] == nearest[:, None, :]) & (found >= 0)[:, :, None]).any(axis=2).sum(axis=1)
    wanted = np.minimum(k, (nearest >= 0).sum(axis=1))
    return np.where(wanted > 0, np.minimum(1, hits / np.maximum(1, wanted)), 1.0)


class HeldOut:
    """Queries and their nearest vectors of an index, which are kept right as vectors come and go.

    Which queries? A user's own, where there are any: only these are certain to be like those to come. Else two kinds
    (:meth:`of`), each of which has to find its share. Vectors of the corpus, none of which counts as its own neighbour,
    ask as things of the corpus' kind do ("more like this", a text among texts): they find about what vectors find that
    were never in it. Points halfway between two vectors ask as another kind does, such as texts for images, that lies
    off the corpus: they need some times the effort. Half of each kind tunes an index, the other half measures it.

    More neighbours are kept than a measurement asks for, so that it can still be made when some of them are removed:
    nothing is searched again for it, nor need the vectors be kept.

    Args:
        queries: (Q, D) float32, of unit length under cosine.
        own: (Q,) int64 position of each in the index; -1 if it is not there.
        similarity: of the index.
        kinds: (Q,) int64 number of each query's kind; one kind if absent.
        count: vectors that have been taken account of.
        positions: (Q, T) int64, the T nearest of these, best first; a vector that is there is its own nearest.
        scores: (Q, T) float32 as FAISS gives them: inner products, or squared distances.
    """

    def __init__(
        self,
        queries: np.ndarray,
        own: np.ndarray,
        similarity: Similarity,
        kinds: np.ndarray | None = None,
        count: int = 0,
        positions: np.ndarray | None = None,
        scores: np.ndarray | None = None,
    ) -> None:
        self.queries, self.own = queries, own
        self.kinds = np.zeros(len(queries), np.int64) if kinds is None else kinds
        self.similarity: Similarity = similarity
        self.count = count
        self.positions = np.empty((len(queries), 0), np.int64) if positions is None else positions
        self.scores = np.empty((len(queries), 0), np.float32) if scores is None else scores

    @staticmethod
    def drawn(count: int) -> np.ndarray:
        """Positions of the vectors to ask for, of ``count``."""
        return np.sort(np.random.default_rng(_SEED).choice(count, min(QUERIES, count), replace=False))

    @classmethod
    def of(cls, rows: np.ndarray, own: np.ndarray, similarity: Similarity) -> HeldOut:
        """Vectors (Q, D) at the positions ``own`` of an index, and as many points halfway between two of them."""
        other = np.random.default_rng(_SEED).permutation(len(rows))
        queries = np.concatenate([rows, (rows + rows[other]) / 2])
        kinds = np.repeat([0, 1], len(rows))
        return cls(queries, np.concatenate([own, np.full(len(rows), -1)]), similarity, kinds)

    def extend(self, vectors: np.ndarray, positions: np.ndarray) -> None:
        """Take account of vectors (n, D), prepared like the queries, which the index holds at these positions."""
        if not len(vectors):
            return
        # Of vectors beyond the known ones nothing is known but that they are no nearer than the last of these.
        known = self.positions.shape[1]
        width = known if known < self.count else min(_KNOWN, self.count + len(vectors))
        distances = METRICS[self.similarity] == faiss.METRIC_L2
        found, scores = exact_search(self.queries, vectors, _KNOWN, similarity="euclidean" if distances else "dot")
        scores = scores**2 if distances else scores
        scores = np.concatenate([self.scores, scores], axis=1)
        nearest = np.concatenate([self.positions, positions[found]], axis=1)
        order = np.argsort(scores if distances else -scores, axis=1, kind="stable")[:, :width]
        self.scores = np.take_along_axis(scores, order, axis=1)
        self.positions = np.take_along_axis(nearest, order, axis=1)
        self.count += len(vectors)

    def removed(self, positions: np.ndarray, places: int, *, closed: bool) -> None:
        """Take account of vectors that are gone.

        Args:
            positions: theirs.
            places: of the index before, N.
            closed: the others have moved up to close the gaps.
        """
        keep = np.ones(places, bool)
        keep[positions] = False
        moved = np.cumsum(keep) - 1 if closed else np.arange(places)
        left = keep[self.positions]
        width = int(left.sum(axis=1).min(initial=self.positions.shape[1]))
        order = np.argsort(~left, axis=1, kind="stable")[:, :width]
        self.positions = moved[np.take_along_axis(self.positions, order, axis=1)]
        self.own = np.where((self.own >= 0) & keep[self.own], moved[self.own], -1)
        self.scores = np.take_along_axis(self.scores, order, axis=1)
        self.count -= len(positions)

    def enough(self) -> bool:
        """Whether the neighbours that are known serve to measure with."""
        return self.positions.shape[1] >= min(K + 1, self.count)

    def nearest(self) -> np.ndarray:
        """(Q, M) positions of the ten nearest others, and of all known ones as near as the tenth; -1 fills up."""
        positions, scores = self._others(self.positions, self.scores)
        if not positions.shape[1]:
            return np.full((len(positions), 1), -1)
        last = scores[:, [min(K, positions.shape[1]) - 1]]
        rounding = 1e-6 * np.maximum(1, np.abs(last))
        near = scores <= last + rounding if METRICS[self.similarity] == faiss.METRIC_L2 else scores >= last - rounding
        return np.where(near, positions, -1)[:, : near.sum(axis=1).max()]

    def shares(self, search: Search) -> np.ndarray:
        """(Q,) share of each query's ten nearest that ``search(queries, k)`` finds, which returns positions (Q, k)."""
        found = self._others(search(self.queries, K + 1))[0]
        return recalls(found, self.nearest(), K)

    def halves(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each kind the queries that tune, and those that measure."""
        kinds = [np.flatnonzero(self.kinds == kind) for kind in np.unique(self.kinds)]
        return [(kind[::2], kind[1::2] if len(kind) > 1 else kind) for kind in kinds]

    def recall(self, search: Search) -> float:
        """Share of the ten nearest that those queries find which do not tune, of the kind that finds least."""
        shares = self.shares(search)
        return min(float(shares[measuring].mean()) for _, measuring in self.halves())

    def _others(self, positions: np.ndarray, scores: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(Q, T - 1) of (Q, T), without each query's own position, or without the last where it is not there."""
        out = (positions == self.own[:, None]) & (positions >= 0)
        out[~out.any(axis=1), -1:] = True
        shape = len(positions), max(0, positions.shape[1] - 1)
        kept = positions[~out].reshape(shape)
        return kept, kept if scores is None else scores[~out].reshape(shape)

    def save(self, path: Path) -> None:
        """Write queries and neighbours to a file."""
        save_file({name: np.ascontiguousarray(getattr(self, name)) for name in _PARTS}, path)

    @classmethod
    def load(cls, path: Path, similarity: Similarity, dim: int, count: int, cure: str) -> HeldOut:
        """Read what :meth:`save` wrote. Raises ``MmclError`` if it is damaged."""
        try:
            parts = load_file(path)
            queries, own, kinds, positions, scores = (parts[name] for name in _PARTS)
        except Exception as error:  # what a damaged file raises is of many kinds
            raise MmclError(f"{path}: damaged ({str(error) or type(error).__name__:.200}); {cure}") from None
        shape = (len(queries), positions.shape[-1])
        fits = queries.shape == (len(own), dim) and positions.shape == scores.shape == shape
        fits = fits and kinds.shape == own.shape and len(queries) > 0
        if not fits or queries.dtype != np.float32 or positions.dtype != np.int64 or own.dtype != np.int64:
            raise MmclError(f"{path}: damaged, its shapes do not fit the index; {cure}")
        return cls(queries, own, similarity, kinds, count, positions, scores)
