"""Where ids are in a column of them that does not change."""

from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_SCANS = 32  # of all ids take about as long as sorting them, or as looking up one in so many


class IdLookup:
    """Positions of ids. The first few calls, and those for a large share of the ids, compare with all N; else these are
    sorted, once, and searched by bisection: a process that asks once does not wait for that.

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
        if self._scans < _SCANS or len(wanted) * _SCANS >= len(self._ids):
            self._scans += 1
            return np.flatnonzero(pc.is_in(self._ids, value_set=wanted).to_numpy(zero_copy_only=False))
        order, wanted = self._sorted(), wanted.unique()
        first, end = self._bisect(order, wanted)
        counts = end - first
        starts = np.cumsum(counts) - counts
        return np.sort(order[np.repeat(first - starts, counts) + np.arange(counts.sum())].astype(np.int64))

    def _sorted(self) -> np.ndarray:
        with self._sorting:
            if self._order is None:
                order = pc.array_sort_indices(self._ids).to_numpy()
                self._order = order.astype(np.uint32) if len(order) < 2**32 else order
            return self._order

    def _bisect(self, order: np.ndarray, wanted: pa.Array) -> np.ndarray:
        """(2, n) how many ids are less than each of ``wanted``, and how many are not greater."""
        asked = pa.concat_arrays([wanted, wanted])
        or_equal = pa.array(np.repeat([False, True], len(wanted)))
        preceding, step = np.zeros(len(asked), np.int64), 1 << (len(order).bit_length() - 1)
        while step:
            tried = preceding + step
            ids = self._ids.take(pa.array(order[np.minimum(tried, len(order)) - 1]))
            precedes = pc.or_(pc.less(ids, asked), pc.and_(or_equal, pc.equal(ids, asked)))
            preceding[precedes.to_numpy(zero_copy_only=False) & (tried <= len(order))] += step
            step //= 2
        return preceding.reshape(2, -1)
