"""Queries with their true neighbours in an index, by which its recall is measured as it changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
from safetensors.numpy import load_file, save_file

from mmcl.losses.logits.similarity import Similarity
from mmcl.retrieval.specs import METRICS
from mmcl.runtime.errors import MmclError

QUERIES = 256
K = 10
_KNOWN = 100
_SEED = 1
_PARTS = ("queries", "own", "positions", "scores")


class HeldOut:
    """Vectors of an index, asked for their nearest neighbours, which are kept right as vectors come and go.

    A vector does not count as its own neighbour. More neighbours are kept than a measurement asks for, so that it can
    still be made when some of them are removed: nothing is searched again for it, nor need the vectors be kept.

    Args:
        queries: (Q, D) float32, of unit length under cosine.
        own: (Q,) int64 position of each in the index; -1 if it is not there.
        similarity: of the index.
        count: vectors that have been taken account of.
        positions: (Q, T) int64, the T nearest of these, best first; a vector that is there is its own nearest.
        scores: (Q, T) float32 as FAISS gives them: inner products, or squared distances.
    """

    def __init__(
        self,
        queries: np.ndarray,
        own: np.ndarray,
        similarity: Similarity,
        count: int = 0,
        positions: np.ndarray | None = None,
        scores: np.ndarray | None = None,
    ) -> None:
        self.queries, self.own = queries, own
        self.similarity: Similarity = similarity
        self.count = count
        self.positions = np.empty((len(queries), 0), np.int64) if positions is None else positions
        self.scores = np.empty((len(queries), 0), np.float32) if scores is None else scores

    @staticmethod
    def drawn(count: int) -> np.ndarray:
        """Positions of the vectors to ask for, of ``count``."""
        return np.sort(np.random.default_rng(_SEED).choice(count, min(QUERIES, count), replace=False))

    def extend(self, vectors: np.ndarray, positions: np.ndarray) -> None:
        """Take account of vectors (n, D), prepared like the queries, which the index holds at these positions."""
        if not len(vectors):
            return
        # Of vectors beyond the known ones nothing is known but that they are no nearer than the last of these.
        known = self.positions.shape[1]
        width = known if known < self.count else min(_KNOWN, self.count + len(vectors))
        metric = METRICS[self.similarity]
        scores, found = faiss.knn(self.queries, vectors, min(_KNOWN, len(vectors)), metric=metric)
        scores = np.concatenate([self.scores, scores], axis=1)
        nearest = np.concatenate([self.positions, positions[found]], axis=1)
        order = np.argsort(scores if metric == faiss.METRIC_L2 else -scores, axis=1, kind="stable")[:, :width]
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

    def recall(self, search: Callable[[np.ndarray, int], np.ndarray]) -> float:
        """Share of the ten nearest that ``search(queries, k)`` finds, which returns positions (Q, k)."""
        nearest = self.others(self.positions[:, : K + 1])
        if nearest.size == 0:
            return 1.0
        found = self.others(search(self.queries, K + 1))
        return float((found[:, :, None] == nearest[:, None, :]).any(axis=1).mean())

    def halfway(self) -> np.ndarray:
        """(Q, D) halfway between pairs of the queries: off the vectors, as texts lie off the images they ask for."""
        one, other = np.random.default_rng(_SEED).integers(0, len(self.queries), (2, len(self.queries)))
        return (self.queries[one] + self.queries[other]) / 2

    def others(self, positions: np.ndarray) -> np.ndarray:
        """(Q, T - 1) of (Q, T) positions, without each query's own, or without the last where it is not among them."""
        out = positions == self.own[:, None]
        out[~out.any(axis=1), -1:] = True
        return positions[~out].reshape(len(positions), -1)

    def save(self, path: Path) -> None:
        """Write queries and neighbours to a file."""
        save_file({name: np.ascontiguousarray(getattr(self, name)) for name in _PARTS}, path)

    @classmethod
    def load(cls, path: Path, similarity: Similarity, dim: int, count: int, cure: str) -> HeldOut:
        """Read what :meth:`save` wrote. Raises ``MmclError`` if it is damaged."""
        try:
            parts = load_file(path)
            queries, own, positions, scores = (parts[name] for name in _PARTS)
        except Exception as error:  # what a damaged file raises is of many kinds
            raise MmclError(f"{path}: damaged ({str(error) or type(error).__name__:.200}); {cure}") from None
        shape = (len(queries), positions.shape[-1])
        fits = queries.shape == (len(own), dim) and positions.shape == scores.shape == shape
        if not fits or queries.dtype != np.float32 or positions.dtype != np.int64 or own.dtype != np.int64:
            raise MmclError(f"{path}: damaged, its shapes do not fit the index; {cure}")
        return cls(queries, own, similarity, count, positions, scores)
