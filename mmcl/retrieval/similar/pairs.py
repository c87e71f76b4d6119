"""All pairs of vectors whose cosine is at least some threshold, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmcl.retrieval.faiss.index import Index
from mmcl.retrieval.index import VectorShards
from mmcl.retrieval.inputs import as_shards, in_messages, prepared
from mmcl.retrieval.mining import search_by_index
from mmcl.retrieval.products import Block, Space, group_maxima, reaching
from mmcl.runtime.device import multiplies_bfloat16
from mmcl.runtime.errors import MmclError
from mmcl.runtime.progress import progress

BLOCK = 4096  # rows on each side of a product
MEMORY = 1 << 30  # bytes of unit vectors that are kept rather than read and normalised again
_MANY = 32  # one in so many products is computed faster with all others than by itself
NEIGHBOURS = 16  # that an index is asked for first
_SPACE = Space("dot")  # of unit vectors


class Pairs(NamedTuple):
    """Some pairs.

    Attributes:
        first: (P,) int64 positions.
        second: (P,) int64 positions, in the same vectors larger than ``first``.
        scores: (P,) float32 cosines.
    """

    first: np.ndarray
    second: np.ndarray
    scores: np.ndarray


def check_threshold(threshold: float) -> None:
    """Raise ``MmclError`` unless it can be the smallest cosine of a pair."""
    if not -1.0 < threshold <= 1.0:
        raise MmclError(f"threshold {threshold}: a cosine, above -1 and at most 1, such as 0.95")


class UnitVectors:
    """Vectors of unit length, read block by block; those that fit into ``memory`` bytes are read once.

    Args:
        vectors: (N, D) array or tensor, or opened vectors on disk.
        memory: bytes.

    Raises:
        MmclError: there are none, or, when they are read, NaN, infinity or a zero vector.
    """

    def __init__(self, vectors: Any, memory: int = MEMORY) -> None:
        self.shards: VectorShards = as_shards(vectors)
        self.dim = self.shards.dim
        if not len(self):
            raise MmclError("there are no vectors; encode at least one row")
        self._fit = len(self) * self.dim * 4 <= memory

    def __len__(self) -> int:
        return len(self.shards)

    @cached_property
    def _kept(self) -> Tensor | None:
        return self._read(0, len(self)) if self._fit else None

    def block(self, start: int, stop: int) -> Tensor:
        """(stop - start, D) float32."""
        return self._read(start, stop) if self._kept is None else self._kept[start:stop]

    def take(self, rows: np.ndarray) -> Tensor:
        """(len(rows), D) float32, of rows in any order."""
        if self._kept is not None:
            return self._kept[torch.from_numpy(rows)]
        order = np.argsort(rows, kind="stable")
        found = np.empty((len(rows), self.dim), np.float32)
        found[order] = prepared(self.shards.take(rows[order]), "cosine", lambda row: self._name(rows[order][row]))
        return torch.from_numpy(found)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """(…, D) float32, of rows (…) in any order."""
        return self.take(rows.ravel()).numpy().reshape(*rows.shape, self.dim)

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[int, Tensor]]:
        """All of them, each block with the position that it starts at."""
        for start in range(0, len(self), size):
            yield start, self.block(start, min(start + size, len(self)))

    def _read(self, start: int, stop: int) -> Tensor:
        rows = self.shards.take(np.arange(start, stop))
        return torch.from_numpy(prepared(rows, "cosine", lambda row: self._name(start + row)))

    def _name(self, position: Any) -> str:
        return in_messages(self.shards, self.shards.table()["id"][int(position)].as_py())


def similar_pairs(
    vectors: UnitVectors,
    threshold: float | Callable[[], float],
    against: UnitVectors | None = None,
    *,
    block: int = BLOCK,
    show_progress: bool | None = None,
) -> Iterator[Pairs]:
    """Every pair whose cosine is at least ``threshold``, each once, in memory for one block of products.

    Products are computed in bfloat16 where the CPU multiplies it natively, with a bound on what that can change
    (:mod:`mmcl.retrieval.products`); what may reach the threshold is computed anew in float32, so that the result is
    the same.

    Args:
        vectors: N of them.
        threshold: smallest cosine; or what gives it, asked anew for every block.
        against: M others, to pair each of the N with; without them, pairs are within the N.
        block: rows on each side of a product.
        show_progress: a bar on stderr; None shows it on a terminal.

    Raises:
        MmclError: the vectors have different dimensions.
    """
    others = vectors if against is None else against
    check_dimensions(vectors, others)
    floor = threshold if callable(threshold) else lambda: threshold
    total = len(vectors) * len(others) if against is not None else len(vectors) * (len(vectors) + 1) // 2
    with progress("compare", total, "pairs", show_progress) as advance:
        for start, vectors_of_rows in vectors.blocks(block):
            rows = _SPACE.queries(vectors_of_rows)
            for at in range(start if against is None else 0, len(others), block):
                triangle = against is None and at == start
                columns = rows if triangle else _SPACE.documents(others.block(at, min(at + block, len(others))))
                found = _at_least(rows, columns, floor(), triangle=triangle)
                height, width = len(rows.vectors), len(columns.vectors)
                advance(height * (height + 1) // 2 if triangle else height * width)
                if len(found.first):
                    yield Pairs(found.first + start, found.second + at, found.scores)


def similar_pairs_by_index(
    vectors: UnitVectors,
    threshold: float,
    against: UnitVectors | None = None,
    *,
    show_progress: bool | None = None,
) -> Iterator[Pairs]:
    """As :func:`similar_pairs`, from an index of the second vectors: faster for many, and what the index does not find
    is missing. A vector is searched with again, for twice as many, while its last hit still reaches the threshold."""
    others = vectors if against is None else against
    check_dimensions(vectors, others)
    index = Index.build(others.shards, np.arange(len(others)), show_progress=show_progress)
    with progress("search", len(vectors), "vectors", show_progress) as advance:
        for start, block in vectors.blocks():
            rows, k = np.arange(len(block)), NEIGHBOURS
            while len(rows):
                items, scores = search_by_index(index, others, block.numpy()[rows], k)
                enough = (scores[:, -1] < threshold) | (k >= len(others))
                place, column = np.nonzero((scores >= threshold) & enough[:, None])
                first, second = rows[place] + start, items[place, column]
                kept = slice(None) if against is not None else second > first
                yield Pairs(first[kept], second[kept], scores[place, column][kept])
                rows, k = rows[~enough], min(2 * k, len(others))
            advance(len(block))


def check_dimensions(vectors: UnitVectors, others: UnitVectors) -> None:
    """Raise ``MmclError`` unless both have vectors of one dimension."""
    if vectors.dim != others.dim:
        raise MmclError(
            f"{in_messages(vectors.shards)} have {vectors.dim} dimensions, those to compare with {others.dim}; "
            "encode both with one model"
        )


def _at_least(rows: Block, columns: Block, threshold: float, *, triangle: bool) -> Pairs:
    """Pairs of two blocks; of the ``triangle``, those of the rows with themselves, each once."""
    dtype = torch.bfloat16 if multiplies_bfloat16(rows.vectors.device) else torch.float32
    products = _SPACE.products(rows, columns, dtype)
    least = threshold - _SPACE.slack(rows, columns, dtype)
    found = reaching(products, group_maxima(products), least, products.numel() // _MANY)
    if found is None:
        dense = _SPACE.dense_scores(rows, columns)
        place, column = (dense >= threshold).nonzero(as_tuple=True)
        scores = dense[place, column]
    else:
        place, column = found
        if triangle:  # the others have as many pairs again to score
            place, column = place[column > place], column[column > place]
        scores = _SPACE.scores(rows, columns, place, column)
    kept = (scores >= threshold) & (column > place) if triangle else scores >= threshold
    return Pairs(place[kept].numpy(), column[kept].numpy(), scores[kept].numpy())
