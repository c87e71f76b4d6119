"""Where ids are in a column of them that does not change."""

from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_SCANS = 32  # of all ids take as long as sorting them


class IdLookup:
    """Positions of ids. The first few calls compare with all N ids; then these are sorted, once, and searched by
    bisection, so that a process that asks once does not wait for that.

    Args:
        ids: (N,) int64 or strings, of which several may be equal.
    """

    def __init__(self, ids: pa.Array) -> None:
        self._ids = ids
        self._scans = 0
        self._order: np.ndarray | None = None  # positions as the ids are sorted, in 4 bytes each below 2^32
        self._sorting = threading.Lock()

    def every(self, wanted: pa.Array) -> np.ndarray:
        """Sorted positions of all that equal one of the ids ``wanted``, (n,) of the same type."""
        if self._scans < _SCANS:
            self._scans += 1
            return np.flatnonzero(pc.is_in(self._ids, value_set=wanted).to_numpy(zero_copy_only=False))
        wanted = wanted.unique()
        order = self._sorted()
        first = self._bisect(order, wanted, after=False)
        counts = self._bisect(order, wanted, after=True) - first
        starts = np.cumsum(counts) - counts
        return np.sort(order[np.repeat(first - starts, counts) + np.arange(counts.sum())].astype(np.int64))

    def _sorted(self) -> np.ndarray:
        with self._sorting:
            if self._order is None:
                order = pc.array_sort_indices(self._ids).to_numpy()
                self._order = order.astype(np.uint32) if len(order) < 2**32 else order
            return self._order

    def _bisect(self, order: np.ndarray, wanted: pa.Array, *, after: bool) -> np.ndarray:
        """(n,) places of ``order`` before the first id that equals each of ``wanted``, or after the last."""
        precedes = pc.less_equal if after else pc.less
        low, high = np.zeros(len(wanted), np.int64), np.full(len(wanted), len(order), np.int64)
        while (unsettled := np.flatnonzero(low < high)).size:
            middle = (low[unsettled] + high[unsettled]) // 2
            compared = precedes(self._ids.take(pa.array(order[middle])), wanted.take(pa.array(unsettled)))
            behind = compared.to_numpy(zero_copy_only=False)
            low[unsettled[behind]] = middle[behind] + 1
            high[unsettled[~behind]] = middle[~behind]
        return low
