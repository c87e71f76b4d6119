"""Groups of things that are joined pair by pair: union-find over arrays."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components


class Groups:
    """N things, each in a group of its own until pairs join them. Memory is 8 bytes a thing, whatever the pairs.

    Args:
        count: N.
    """

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count)

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        """Join the groups of ``first[i]`` and ``second[i]``, (P,) int64 each, for every i."""
        ends = self.of(np.concatenate([first, second]))
        roots, codes = np.unique(ends, return_inverse=True)
        one, other = np.split(codes, 2)
        links = sparse.coo_array((np.ones(len(one), np.int8), (one, other)), shape=(len(roots), len(roots)))
        count, labels = connected_components(links, directed=False)
        lowest = np.full(count, len(self._parent))
        np.minimum.at(lowest, labels, roots)
        self._parent[roots] = lowest[labels]

    def of(self, things: np.ndarray) -> np.ndarray:
        """The lowest member of the group of each of ``things`` (M,)."""
        found = self._parent[things]
        while not np.array_equal(above := self._parent[found], found):
            found = above
        self._parent[things] = found
        return found

    def all(self) -> np.ndarray:
        """(N,): the lowest member of the group of each thing."""
        return self.of(np.arange(len(self._parent)))
