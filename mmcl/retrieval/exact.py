"""Exact search by brute force, tile by tile, at the speed of the machine's matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from mmcl.losses.logits.similarity import Similarity
from mmcl.retrieval.inputs import float32_array
from mmcl.retrieval.largest import ascending_order, kth_largest, largest
from mmcl.retrieval.products import Block, Space, group_maxima, reaching
from mmcl.runtime.device import multiplies_bfloat16, pick_device, ready_after_fork
from mmcl.runtime.errors import MmclError, nearest

T = TypeVar("T")

_TILES = {"cpu": (2048, 2048), "cuda": (4096, 32768)}  # queries and documents of a tile, where memory allows
_SMALLEST = (32, 256)
_TILE_BYTES = 28  # a product: twice while it is ranked, and as float64 where all of a tile is scored
_DIMENSION_BYTES = 24  # a component of a document: read, prepared and rounded, and the next block's
_MANY = 4  # times k candidates a query are too many to score one by one
_LAST = 0xFFFFFFFF  # of positions


def exact_search(
    queries: Any,
    corpus: Any,
    k: int,
    *,
    similarity: Similarity = "cosine",
    memory: int = 2**30,
    device: str | torch.device | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar documents of each query; of equal ones the first.

    Products are computed in bfloat16 where the hardware multiplies it (``precision: auto``), else in float32. What they
    leave possible by a proven bound (:mod:`mmcl.retrieval.products`) is scored again in float32, so that the result is
    that of float32 either way.

    Args:
        queries: (Q, D) array or tensor.
        corpus: (N, D) array, memory map, tensor, or vectors on disk (:func:`mmcl.encoding.open_vectors`); read block by
            block, the next one while one is searched.
        k: documents for each query; all N where it is more.
        similarity: of ``euclidean`` the scores are negative distances. A zero vector has cosine 0 with everything.
        memory: bytes to work in, beside the queries and the result. Where they are too few for all the queries at once,
            the corpus is read several times.
        device: where to compute; by default where ``queries`` lie if they are a tensor, else the CPU.

    Returns:
        Positions in the corpus (Q, k) int64 and scores (Q, k) float32, best first.

    Raises:
        MmclError: vectors of different widths or that hold NaN, infinity or numbers whose squares float32 cannot hold;
            an unknown similarity or device; k below 1; or memory too small for it.
    """
    if similarity not in get_args(Similarity):
        raise MmclError(f"unknown similarity '{similarity}': {nearest(str(similarity), get_args(Similarity))}")
    if isinstance(k, bool) or int(k) != k or k < 1:
        raise MmclError(f"k is {k!r}; give a whole number from 1 up")
    where = pick_device(str(device)) if device is not None else _device_of(queries)
    ready_after_fork(where)
    asked, documents = _Source.of("queries", queries), _Source.of("corpus", corpus)
    if asked.dim != documents.dim:
        raise MmclError(f"queries have {asked.dim} dimensions, the corpus has {documents.dim}: use one model for both")
    k = min(int(k), documents.rows)
    positions, scores = np.empty((asked.rows, k), np.int64), np.empty((asked.rows, k), np.float32)
    if not positions.size:
        return positions, scores
    plan = _Plan.of(documents.dim, k, memory, where)
    centre = None
    if similarity == "euclidean":
        centre = documents.read(0, min(plan.documents, documents.rows), where).mean(0).nan_to_num(0, 0, 0)
    space = Space(similarity, centre)
    for first in range(0, asked.rows, plan.at_once):
        some = slice(first, min(first + plan.at_once, asked.rows))
        positions[some], scores[some] = _search(asked, some, documents, k, space, plan)
    return positions, scores


def _search(
    asked: _Source, some: slice, documents: _Source, k: int, space: Space, plan: _Plan
) -> tuple[np.ndarray, np.ndarray]:
    """Positions and scores of some of the queries."""
    starts = range(some.start, some.stop, plan.queries)
    found = []
    for start in starts:
        part = space.queries(asked.read(start, min(start + plan.queries, some.stop), plan.device))
        found.append(_Nearest(space, asked.checked(part, start), k, plan.dtype))

    def read(start: int) -> Tensor:
        return documents.read(start, min(start + plan.documents, documents.rows), plan.device)

    starts = range(0, documents.rows, plan.documents)
    for start, vectors in zip(starts, _ahead(read, starts), strict=True):
        block = documents.checked(space.documents(vectors), start)
        for best in found:
            best.add(block, start)
    results = [best.result() for best in found]
    return np.concatenate([position for position, _ in results]), np.concatenate([score for _, score in results])


def _ahead(read: Callable[[int], T], starts: Sequence[int]) -> Iterator[T]:
    """What is read at each start, the next one while the caller works on one."""
    with ThreadPoolExecutor(1) as reader:
        due = reader.submit(read, starts[0])
        for start in starts[1:]:
            ready, due = due.result(), reader.submit(read, start)
            yield ready
        yield due.result()


class _Nearest:
    """The k best documents so far for each of n queries.

    Kept are integers that ascend as scores do, and of equal scores as positions descend: no two are equal, so whatever
    selects the largest selects the same.
    """

    def __init__(self, space: Space, queries: Block, k: int, dtype: torch.dtype) -> None:
        self._space, self._queries, self._k, self._dtype = space, queries, k, dtype
        rows, device = len(queries.vectors), queries.vectors.device
        self._best = _keys(torch.tensor(-torch.inf), torch.tensor(_LAST)).to(device).repeat(rows, k)
        self._waiting: list[tuple[Tensor, Tensor]] = []  # rows and keys of candidates
        self._full = False  # whether there are k documents

    def add(self, documents: Block, first: int) -> None:
        """Search some documents, the first of which is at a position of the corpus above those of all before."""
        found = self._candidates(documents)
        if found is None and self._dtype == torch.bfloat16:
            self._dtype = torch.float32  # bfloat16 cannot tell these documents apart
            found = self._candidates(documents)
        rows, columns = self._best_of(documents) if found is None else found
        scores = self._space.scores(self._queries, documents, rows, columns)
        self._waiting.append((rows, _keys(scores, columns + first)))
        if not self._full or 2 * sum(len(rows) for rows, _ in self._waiting) >= self._best.numel():
            self._merge()
        self._full = first + len(documents.vectors) >= self._k

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions (n, k) and similarities (n, k), best first."""
        self._merge()
        similarities = self._space.similarities(_scores_of(self._best))
        return (_LAST - (self._best & _LAST)).cpu().numpy(), similarities.cpu().numpy()

    def _candidates(self, documents: Block) -> tuple[Tensor, Tensor] | None:
        """Rows and columns of the documents that may be among the best k; None if they are too many."""
        products = self._space.products(self._queries, documents, self._dtype)
        maxima = group_maxima(products)
        slack = self._space.slack(self._queries, documents, self._dtype)
        worst = self._space.of_scores(self._queries, _scores_of(self._best[:, -1]))
        most = _MANY * self._k * len(products)
        count = products.shape[1]
        found = reaching(products, maxima, worst - slack, most) if self._full or count < self._k else None
        if found is None and count >= self._k:
            # There are k products at least as large as the k-th of the groups' largest: a lower bound for the k-th best
            # score, less what it was itself rounded by.
            of = maxima if maxima.shape[1] >= 2 * self._k else products
            least = kth_largest(of, self._k)
            least = least - slack - least.abs() * torch.finfo(products.dtype).eps
            found = reaching(products, maxima, torch.maximum(worst, least) - slack, most)
        return found

    def _best_of(self, documents: Block) -> tuple[Tensor, Tensor]:
        """Rows and columns of the best k of documents that float32 products cannot tell apart either."""
        scores = self._space.dense_scores(self._queries, documents)
        rows, columns = scores.shape
        chosen = _keys(scores, torch.arange(columns, device=scores.device)).topk(min(self._k, columns)).indices
        return torch.arange(rows, device=scores.device).repeat_interleave(chosen.shape[1]), chosen.flatten()

    def _merge(self) -> None:
        if not self._waiting:
            return
        rows, keys = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting = []
        order = ascending_order(rows, len(self._best))
        rows = rows[order]
        counts = rows.bincount(minlength=len(self._best))
        place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        width = 2 * self._k
        for start in range(0, int(counts.max()), width):  # a query with many more than the others takes several turns
            now = (place >= start) & (place < start + width)
            table = self._best.new_full(
                (len(self._best), min(width, int(counts.max()) - start)), torch.iinfo(torch.int64).min
            )
            table[rows[now], place[now] - start] = keys[order[now]]
            self._best = largest(torch.cat([self._best, table], 1), self._k)


def _keys(scores: Tensor, positions: Tensor) -> Tensor:
    bits = (scores + 0.0).view(torch.int32)  # −0 becomes 0
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # the bits of negative numbers ascend with their absolute values
    return (ascending.to(torch.int64) << 32) | (_LAST - positions)


def _scores_of(keys: Tensor) -> Tensor:
    ascending = (keys >> 32).to(torch.int32)
    return (ascending ^ ((ascending >> 31) & 0x7FFFFFFF)).view(torch.float32)


@dataclass(frozen=True)
class _Plan:
    """What is computed at a time, within a budget of memory."""

    at_once: int
    """Queries that are searched in one reading of the corpus."""
    queries: int
    """Of a tile."""
    documents: int
    """Of a tile."""
    device: torch.device
    dtype: torch.dtype
    """Of the products."""

    @classmethod
    def of(cls, dim: int, k: int, memory: int, device: torch.device) -> _Plan:
        """Half of the memory is for the queries and their best documents, half for tiles."""
        dtype = torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
        queries, documents = _TILES.get(device.type, _TILES["cpu"])

        def needed() -> int:
            return queries * documents * _TILE_BYTES + documents * dim * _DIMENSION_BYTES

        while needed() > memory // 2 and (queries, documents) != _SMALLEST:
            if queries // _SMALLEST[0] >= documents // _SMALLEST[1]:
                queries //= 2
            else:
                documents //= 2
        each = dim * 12 + k * 64  # vectors and factors; keys, and candidates while they are merged
        at_once = memory // 2 // each
        if needed() > memory // 2 or at_once < 1:
            least = 2 * max(needed(), each)
            raise MmclError(f"memory is {memory:,} bytes; k = {k} and {dim} dimensions need {least:,} at least")
        queries = min(queries, at_once)
        return cls(at_once // queries * queries, queries, documents, device, dtype)


@dataclass(frozen=True)
class _Source:
    """Vectors wherever they lie, read as float32."""

    name: str
    rows: int
    dim: int
    take: Callable[[int, int], Any]

    @classmethod
    def of(cls, name: str, given: Any) -> _Source:
        """An array, a tensor, a list of rows, or vectors on disk."""
        if hasattr(given, "iter_shards"):
            name = str(getattr(given, "folder", name))
            return cls(name, len(given), given.dim, lambda start, stop: given.take(np.arange(start, stop)))
        vectors = given if isinstance(given, np.ndarray | Tensor) else float32_array(given)
        if vectors.ndim != 2:
            raise MmclError(f"{name}: expected an (N, D) array, not one of shape {tuple(vectors.shape)}")
        rows, dim = vectors.shape
        return cls(name, rows, dim, lambda start, stop: vectors[start:stop])

    def read(self, start: int, stop: int, device: torch.device) -> Tensor:
        """(stop − start, D) float32 on the device."""
        taken = self.take(start, stop)
        if isinstance(taken, Tensor):
            return taken.detach().to(device, torch.float32)
        return torch.from_numpy(np.require(float32_array(taken), requirements=["C", "W"])).to(device)

    def checked(self, block: Block, start: int) -> Block:
        """The block of the vectors from ``start`` on, unless one of them cannot be multiplied."""
        finite = torch.isfinite(block.norms)
        if not bool(finite.all()):
            row = start + int(finite.int().argmin())
            raise MmclError(
                f"{self.name}: the vector of row {row:,} has a NaN, an infinity or numbers too large to multiply in "
                "float32; leave it out"
            )
        return block


def _device_of(queries: Any) -> torch.device:
    return queries.device if isinstance(queries, Tensor) else torch.device("cpu")
