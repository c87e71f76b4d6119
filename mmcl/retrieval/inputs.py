"""Vectors that callers hand in, as what an index is built from and searched with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pyarrow as pa

from mmcl.encoding.corpora.vectors import let_go
from mmcl.losses.logits.similarity import Similarity, unit_rows
from mmcl.retrieval.index import VectorIndex, VectorShards, known_to_differ
from mmcl.runtime.errors import MmclError, nearest

BLOCK_BYTES = 2**23
"""Of float32 vectors that are looked at together."""


class InMemory:
    """An array with the methods of vectors on disk.

    Args:
        array: (N, D).
    """

    model = None

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.dim = array.shape[1]

    def __len__(self) -> int:
        return len(self._array)

    def table(self) -> pa.Table:
        """The ids 0 … N-1."""
        return pa.table({"id": pa.array(np.arange(len(self)))})

    def iter_shards(self) -> Iterator[tuple[None, np.ndarray]]:
        """The array as one shard."""
        yield None, self._array

    def take(self, indices: np.ndarray) -> np.ndarray:
        """The vectors at these positions."""
        return self._array[indices]


def float32_array(values: Any) -> np.ndarray:
    """An array, tensor or list of numbers as float32.

    Raises:
        MmclError: rows of different lengths, something other than numbers, or a vector that float32 cannot hold.
    """
    try:
        if hasattr(values, "detach"):  # a tensor, of a kind that numpy may not have
            values = values.detach().cpu()
            values = values.numpy() if str(values.dtype) == "torch.float64" else values.float().numpy()
        given = np.asarray(values)
        with np.errstate(over="ignore"):
            array = given.astype(np.float32, copy=False)
    except (TypeError, ValueError) as error:
        raise MmclError(f"vectors must be numbers in rows of one length: {error}") from None
    if given.dtype == np.float64 and given.ndim:
        lost = (np.isinf(array) & np.isfinite(given)).any(-1) | ((array == 0).all(-1) & (given != 0).any(-1))
        if lost.any():
            raise MmclError(
                f"vector {int(np.argmax(lost))} has values that float32 cannot hold (1e-38 to 3e38); scale the vectors"
            )
    return array


def as_shards(vectors: Any) -> VectorShards:
    """Vectors on disk as they are, and an (N, D) array as one shard.

    Raises:
        MmclError: a path, or something other than (N, D) numbers.
    """
    if isinstance(vectors, str | Path):
        raise MmclError(f"vectors is the path '{vectors}'; open it first: mmcl.encoding.open_vectors(path)")
    if hasattr(vectors, "iter_shards"):
        return cast(VectorShards, vectors)
    array = float32_array(vectors)
    if array.ndim != 2:
        raise MmclError(f"vectors have shape {array.shape}; an index is built from (N, D)")
    return InMemory(array)


def in_messages(shards: VectorShards, id: Any = None) -> str:
    """What messages call vectors, or the one of an id: where they lie, if on disk."""
    folder = getattr(shards, "folder", None)
    where = "" if folder is None else f"{folder}: "
    return where + ("the vectors" if id is None else f"id {id!r}")


def prepared(block: np.ndarray, similarity: Similarity, name: Callable[[Any], str]) -> np.ndarray:
    """``block`` (n, D) as contiguous float32, of unit length under cosine.

    Args:
        block: vectors.
        similarity: of the index.
        name: what messages call a row, by its number.

    Raises:
        MmclError: a NaN or an infinity, or a zero vector under cosine.
    """
    block = np.ascontiguousarray(block, dtype=np.float32)
    broken = np.flatnonzero(~np.isfinite(block).all(axis=1))
    if len(broken):
        raise MmclError(f"{name(broken[0])} holds NaN or infinity ({len(broken):,} such vectors); leave them out")
    if similarity != "cosine":
        return block
    zero = np.flatnonzero(~block.any(axis=1))
    if len(zero):
        raise MmclError(f"{name(zero[0])} is a zero vector, whose cosine is undefined; leave it out")
    return unit_rows(block)


def blocks(shards: VectorShards, similarity: Similarity, table: pa.Table) -> Iterator[tuple[int, np.ndarray]]:
    """Number of the first vector and (n, D) prepared vectors, block by block."""
    first = 0
    rows = max(1, BLOCK_BYTES // (4 * shards.dim))
    for _, shard in shards.iter_shards():
        for start in range(0, len(shard), rows):
            name = lambda row, first=first: in_messages(shards, table["id"][first + int(row)].as_py())  # noqa: E731
            block = prepared(shard[start : start + rows], similarity, name)
            yield first, block
            first += len(block)
            let_go(shard)


def check_similarity(similarity: str) -> None:
    """Raise ``MmclError`` for what is none."""
    if similarity not in get_args(Similarity):
        raise MmclError(f"unknown similarity '{similarity}'; {nearest(str(similarity), get_args(Similarity))}")


def check_origin(shards: VectorShards, index: VectorIndex) -> None:
    """Raise ``MmclError`` for vectors of another dimension than those of an index, or known to be another model's."""
    if shards.dim != index.dim:
        of = f"; encode with its model, '{index.model}'" if index.model else "; encode with the model of these"
        raise MmclError(f"{in_messages(shards)} have {shards.dim} dimensions, those of the index have {index.dim}" + of)
    if known_to_differ(shards.model, getattr(shards, "encoder", None), index):
        same = " with other weights or another prompt" if shards.model == index.model else ""
        raise MmclError(
            f"{in_messages(shards)} are of model '{shards.model}'{same}, those of the index of '{index.model}'; "
            "encode them with that one, or build an index of their own"
        )


def asked_for(queries: Any, k: Any, dim: int, similarity: Similarity, model: str | None = None) -> np.ndarray:
    """The queries of a search, (Q, D) float32, of unit length under cosine.

    Args:
        queries: (Q, D) array or tensor; (D,) is one query.
        k: results for each.
        dim: of the index.
        similarity: of the index.
        model: whose vectors the index holds, which a message names.

    Raises:
        MmclError: another dimension, NaN or infinity, a zero query under cosine, or k < 1.
    """
    queries = float32_array(queries)
    queries = queries[None] if queries.ndim == 1 else queries
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise MmclError(
            f"queries have shape {queries.shape}, the index holds vectors of {dim} dimensions"
            + (f" from model '{model}'; embed the queries with it" if model else "")
        )
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise MmclError(f"k is {k!r}; it must be a whole number from 1 up")
    return prepared(queries, similarity, lambda row: f"query {row}")
