"""What a search of an index is limited to: by a condition on metadata, or since vectors are removed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np

from mmcl.retrieval.faiss.contents import cells_of, selector, stored_vectors
from mmcl.retrieval.filters import matching, require_text
from mmcl.retrieval.metadata import Metadata

GATHERED_BYTES = 128 * 2**20
"""Vectors that fulfil a condition are gathered, and kept for the next search by it, up to so many bytes."""
_BLOCK = 65_536


class Selection:
    """Positions to which searches are limited.

    Args:
        allowed: (N,) bool, one or more of them true.
        gathers: few of them are gathered for exact search, since many searches will be limited to these.
    """

    def __init__(self, allowed: np.ndarray, *, gathers: bool = True) -> None:
        self.allowed = allowed
        self.positions = np.flatnonzero(allowed)
        self.share = len(self.positions) / len(allowed)
        self.selector = selector(np.packbits(allowed, bitorder="little"))
        self.gathers = gathers
        self._gathered: Any = None
        self._cells: Any = None
        self._making = threading.Lock()

    def __len__(self) -> int:
        return len(self.positions)

    def size(self, dim: int) -> int:
        """Bytes of its vectors."""
        return 4 * dim * len(self)

    def is_small(self, dim: int) -> bool:
        """Whether its vectors are gathered in memory."""
        return self.gathers and self.size(dim) <= GATHERED_BYTES

    def cells(self, inverted: Any) -> Any:
        """A selector of the cells of an inverted file in which its vectors lie."""
        with self._making:
            if self._cells is None:
                occupied = np.zeros(inverted.nlist, bool)
                occupied[cells_of(inverted)[self.positions]] = True
                self._cells = selector(np.packbits(occupied, bitorder="little"))
        return self._cells

    def flats(self, index: Any) -> Iterator[tuple[np.ndarray, Any]]:
        """Positions and a flat index of their vectors, block by block."""
        if self.is_small(index.d):
            with self._making:
                if self._gathered is None:
                    self._gathered = _flat(index, self.positions)
            yield self.positions, self._gathered
            return
        for start in range(0, len(self), _BLOCK):
            block = self.positions[start : start + _BLOCK]
            yield block, _flat(index, block)


class Selections:
    """Of the last few conditions, as many as fit into :data:`GATHERED_BYTES`.

    Args:
        dim: components of a vector.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._kept: OrderedDict[str | None, Selection | None] = OrderedDict()
        self._selecting = threading.Lock()

    def __contains__(self, where: str | None) -> bool:
        return where in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forget them: vectors have come or gone."""
        self._kept.clear()

    def of(self, where: str | None, metadata: Metadata) -> Selection | None:
        """What fulfils a condition and is not removed; None for all that there is.

        Raises:
            MmclError: the condition cannot be understood, or asks for a column that there is not.
        """
        if where is not None:
            require_text(where)
        with self._selecting:
            if where in self._kept:
                self._kept.move_to_end(where)
                return self._kept[where]
        removed = metadata.removed
        selection = None
        if where is not None:
            allowed = matching(metadata.table, where)
            selection = Selection(allowed if removed is None else allowed & ~removed)
        elif removed is not None:
            selection = Selection(~removed, gathers=False)
        with self._selecting:
            self._kept[where] = selection
            while len(self._kept) > 1 and self._bytes() > GATHERED_BYTES:
                self._kept.popitem(last=False)
        return selection

    def _bytes(self) -> int:
        kept = [selection for selection in self._kept.values() if selection is not None]
        gathered = sum(selection.size(self._dim) for selection in kept if selection.is_small(self._dim))
        return gathered + sum(len(selection.allowed) for selection in kept)


def _flat(index: Any, positions: np.ndarray) -> Any:
    flat = faiss.IndexFlat(index.d, index.metric_type)
    for start in range(0, len(positions), _BLOCK):
        flat.add(stored_vectors(index, positions[start : start + _BLOCK]))
    return flat
