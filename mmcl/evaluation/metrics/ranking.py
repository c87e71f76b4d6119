"""Exact ranks of the relevant documents, streamed over blocks of queries × corpus.

Everything that retrieval reports follows from where each query's relevant documents stand, so those ranks are all that
is kept: memory is one block of scores and one number a judgement, never queries × corpus.

*Ties never help.* Documents with equal scores are ordered worst first: the judged-irrelevant and the unjudged, then the
relevant from the lowest grade to the highest. A model that gives everything one score is ranked last, not first. Where
an order of equal documents is given, such as trec_eval's by their ids, it decides instead.

*Equal documents tie exactly.* A matrix product in float32 gives the same two vectors slightly different scores in
blocks of different shapes, which would put duplicates in an accidental order. Scores are therefore products in float64,
rounded to fixed point in units of 2⁻³⁰ of the largest score possible: the error of the product (about 1e-16) is far
below that unit (1e-9), and the unit is far below what float32 vectors can tell apart (6e-8).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.losses.logits.similarity import Similarity, unit_length
from mmcl.runtime.device import ready_after_fork
from mmcl.runtime.errors import MmclError, nearest

Vectors: TypeAlias = np.ndarray | Tensor  # (N, D), of any real type; a memory map is read block by block

MISSING = -1  # the document number of a relevant document that the corpus does not hold

_FEW = 16  # up to so many relevant documents a query, one comparison each beats a binary search (measured on CPU)
_UNITS = 2.0**30
_NO_PAIRS = np.empty((2, 0), dtype=np.int64)
_PAIR_ELEMENTS = 1 << 22  # elements of the vectors gathered at once to score the relevant documents


@dataclass(frozen=True)
class Judgements:
    """The relevant documents of every query, row by row as in a CSR matrix.

    Query i's relevant documents are ``documents[offsets[i] : offsets[i + 1]]``, each once.
    """

    offsets: np.ndarray  # (Q + 1,) int64
    documents: np.ndarray  # (E,) int64 row numbers in the corpus, or MISSING
    grades: np.ndarray  # (E,) float64, all above 0: what is judged irrelevant is not listed

    @property
    def sizes(self) -> np.ndarray:
        """(Q,): how many relevant documents each query has."""
        return np.diff(self.offsets)

    @property
    def queries(self) -> np.ndarray:
        """(E,): the query of each entry."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    def of_queries(self, rows: np.ndarray) -> Judgements:
        """The same entries, for these queries alone, renumbered; the others must have none."""
        return Judgements(np.append(0, np.cumsum(self.sizes[rows])), self.documents, self.grades)

    def without(self, pairs: np.ndarray, corpus: int) -> Judgements:
        """All entries but the (2, P) ``pairs`` of queries and documents of a corpus of so many."""
        kept = self.keeps(pairs[0], pairs[1], corpus)
        sizes = np.bincount(self.queries[kept], minlength=len(self.sizes))
        return Judgements(np.append(0, np.cumsum(sizes)), self.documents[kept], self.grades[kept])

    def keeps(self, queries: np.ndarray, documents: np.ndarray, corpus: int) -> np.ndarray:
        """(E,) bool: which entries are none of the P pairs."""
        return ~np.isin(self.queries * corpus + self.documents, queries * corpus + documents)


def relevant_ranks(
    queries: Vectors,
    corpus: Vectors,
    judgements: Judgements,
    *,
    similarity: Similarity = "cosine",
    left_out: np.ndarray | None = None,
    tie_order: np.ndarray | None = None,
    device: str | torch.device | None = None,
    query_rows: int = 512,
    corpus_rows: int = 4096,
) -> np.ndarray:
    """The 1-based rank of each relevant document among the whole corpus.

    Args:
        queries: (Q, D) vectors.
        corpus: (C, D) vectors.
        judgements: the relevant documents of the Q queries, E in all.
        similarity: what the corpus is ranked by, best first. Euclidean is the nearest first.
        left_out: (2, P) rows of queries and of documents, integers: such a document is not ranked for such a query, as
            if the corpus lacked it.
        tie_order: (C,) the places that the documents would have if all had one score, from 0 up, each once; without it
            a tie never helps.
        device: where to compute; by default where ``queries`` lie if that is a tensor, else the CPU.
        query_rows, corpus_rows: size of a block. The result does not depend on it.

    Returns:
        (E,) float64, in the order of ``judgements``: 1 is best; infinite for a document that is ``MISSING`` or left
        out.

    Raises:
        MmclError: unknown similarity, or a device without float64.
    """
    if similarity not in get_args(Similarity):
        raise MmclError(f"unknown similarity '{similarity}': {nearest(similarity, get_args(Similarity))}")
    device = _device(queries, device)
    ready_after_fork(device)
    space = _DotSpace(corpus, similarity, device, tie_order)
    layout = _Layout.of(space, queries, corpus, judgements, _NO_PAIRS if left_out is None else left_out)
    blocks = layout.blocks(query_rows, device)
    for first in range(0, len(corpus), corpus_rows):
        documents = space.documents(corpus[first : first + corpus_rows])
        for block in blocks:
            products = space.queries(queries[block.rows]) @ documents.T
            block.add(space.scores(products, slice(first, first + len(documents))), first)
    ranks = np.full(len(judgements.documents), np.inf)
    ahead = np.concatenate([block.ahead() for block in blocks]) if blocks else np.empty(0)
    ranks[layout.entries] = layout.not_above + ahead
    return ranks


@dataclass(frozen=True)
class _Layout:
    """The E' judgements whose documents are ranked, in the order in which blocks of queries hold them.

    Queries are sorted by how many relevant documents they have, so that padding within a block costs little. Within a
    query the entries ascend by score; among equals the better grade stands first, because it is to rank lower.
    """

    rows: np.ndarray  # (Q,) the queries, sorted
    starts: np.ndarray  # (Q + 1,) where the entries of each begin
    entries: np.ndarray  # (E',) numbers of the judgements
    place: np.ndarray  # (E',) of each entry: its query's place in ``rows``
    document: np.ndarray  # (E',)
    score: np.ndarray  # (E',)
    left_out: tuple[np.ndarray, np.ndarray]  # places of queries, and documents, that are not ranked

    @classmethod
    def of(
        cls, space: _DotSpace, queries: Vectors, corpus: Vectors, judgements: Judgements, left_out: np.ndarray
    ) -> _Layout:
        ranked = judgements.keeps(left_out[0], left_out[1], len(corpus))
        found = np.flatnonzero((judgements.documents != MISSING) & ranked)
        query, document = judgements.queries[found], judgements.documents[found]
        scores = _pair_scores(space, queries, corpus, query, document)
        sizes = np.bincount(query, minlength=len(queries))
        rows = np.argsort(sizes, kind="stable")
        place = np.empty_like(rows)
        place[rows] = np.arange(len(rows))
        order = np.lexsort((-judgements.grades[found], scores, place[query]))
        return cls(
            rows=rows,
            starts=np.append(0, np.cumsum(sizes[rows])),
            entries=found[order],
            place=place[query][order],
            document=document[order],
            score=scores[order],
            left_out=(place[left_out[0]], left_out[1]),
        )

    @property
    def slot(self) -> np.ndarray:
        """(E',) of each entry: its number among its query's."""
        return np.arange(len(self.entries)) - self.starts[self.place]

    @property
    def not_above(self) -> np.ndarray:
        """(E',) of each entry: how many relevant documents of its query rank no lower, itself included."""
        return np.diff(self.starts)[self.place] - self.slot

    def blocks(self, query_rows: int, device: torch.device) -> list[_Block]:
        """The queries that have entries, so many at a time."""
        blocks, slot, (unranked_place, unranked_document) = [], self.slot, self.left_out
        for start in range(0, len(self.rows), query_rows):
            some = self.rows[start : start + query_rows]
            part = slice(self.starts[start], self.starts[start + len(some)])
            if part.start < part.stop:
                here = (unranked_place >= start) & (unranked_place < start + len(some))
                unranked = unranked_place[here] - start, unranked_document[here]
                place, document, score = self.place[part] - start, self.document[part], self.score[part]
                blocks.append(_Block(some, place, slot[part], document, score, unranked, device))
        return blocks


class _Block:
    """Some queries, their relevant scores in ascending order, and how many irrelevant documents reach each score."""

    def __init__(
        self,
        rows: np.ndarray,  # (n,) which queries
        row: np.ndarray,  # (e,) of each relevant document: its query, counted in the block
        slot: np.ndarray,  # (e,) its number among that query's
        document: np.ndarray,  # (e,) its number in the corpus
        score: np.ndarray,  # (e,) its score, ascending with the slot
        unranked: tuple[np.ndarray, np.ndarray],  # queries, counted in the block, and documents that do not count
        device: torch.device,
    ) -> None:
        self.rows, self._row, self._slot = rows, row, slot
        self._masked_row, self._masked_document = np.append(row, unranked[0]), np.append(document, unranked[1])
        thresholds = np.full((len(rows), int(slot.max()) + 1), np.iinfo(score.dtype).max, dtype=score.dtype)
        thresholds[row, slot] = score
        self._thresholds = torch.from_numpy(thresholds).to(device)
        self._ahead = torch.zeros_like(self._thresholds, dtype=torch.int64)

    def add(self, scores: Tensor, first: int) -> None:
        """Count the irrelevant among some documents by their ``scores`` (n, c), which are overwritten; the first of
        them is number ``first`` of the corpus."""
        inside = (self._masked_document >= first) & (self._masked_document < first + scores.shape[1])
        row = torch.from_numpy(self._masked_row[inside])
        column = torch.from_numpy(self._masked_document[inside] - first)
        scores[row.to(scores.device), column.to(scores.device)] = torch.iinfo(scores.dtype).min
        self._ahead += _count_reaching(scores, self._thresholds)

    def ahead(self) -> np.ndarray:
        """(e,): how many irrelevant documents score at least as much as each relevant one."""
        return self._ahead.cpu().numpy()[self._row, self._slot]


def _count_reaching(scores: Tensor, thresholds: Tensor) -> Tensor:
    """(n, P): how many of ``scores`` (n, c) are ≥ each of the ascending ``thresholds`` (n, P) of the same row."""
    rows, slots = thresholds.shape
    if slots <= _FEW:
        reaching = [(scores >= thresholds[:, slot, None]).sum(1, dtype=torch.int32) for slot in range(slots)]
        return torch.stack(reaching, 1)
    reached = torch.searchsorted(thresholds, scores, right=True)  # a score that reaches j of them reaches the first j
    reached += torch.arange(rows, device=scores.device)[:, None] * (slots + 1)
    counts = torch.bincount(reached.view(-1), minlength=rows * (slots + 1)).view(rows, slots + 1)
    return counts.flip(1).cumsum(1).flip(1)[:, 1:]


def _pair_scores(
    space: _DotSpace, queries: Vectors, corpus: Vectors, query: np.ndarray, document: np.ndarray
) -> np.ndarray:
    """(E,) integers: the score of each entry's query with its document."""
    step = max(1, _PAIR_ELEMENTS // queries.shape[1])
    scores = np.empty(len(query), dtype=np.int32 if space.tie_order is None else np.int64)
    for start in range(0, len(query), step):
        part = slice(start, start + step)
        products = space.queries(queries[query[part]]) * space.documents(corpus[document[part]])
        scores[part] = space.scores(products.sum(1), document[part]).cpu().numpy()
    return scores


def _fixed_point(products: Tensor) -> Tensor:
    return products.round_().to(torch.int32)


class _DotSpace:
    """Maps vectors to float64 ones whose dot product, in units of 2⁻³⁰, ranks the corpus as ``similarity`` does.

    A query's length does not change its ranking, so queries have length 2³⁰; documents are scaled to length 1 at most.
    −‖q − c‖²/2 = q·c − ‖c‖²/2 − ‖q‖²/2: with one more dimension, (q, 1)·(c, −‖c‖²/2) orders the corpus by distance.
    There the corpus's mean is subtracted first: a common offset would use up the digits that tell distances apart.
    What is left resolves squared distances to about 1e-9 of the corpus's squared radius.
    """

    def __init__(
        self, corpus: Vectors, similarity: Similarity, device: torch.device, tie_order: np.ndarray | None = None
    ) -> None:
        self.device = device
        self.tie_order = None if tie_order is None else torch.from_numpy(tie_order).to(device)
        self._similarity = similarity
        self._centre: Tensor | float = 0.0
        self._radius: Tensor | float = 1.0
        if similarity == "euclidean":
            self._centre = torch.stack([part.sum(0) for part in self._parts(corpus)]).sum(0) / len(corpus)
        if similarity != "cosine":
            largest = [(part - self._centre).norm(dim=1).max() for part in self._parts(corpus)]
            self._radius = torch.stack(largest).max().clamp(min=torch.finfo(torch.float64).tiny)

    def scores(self, products: Tensor, documents: slice | np.ndarray) -> Tensor:
        """Products with these documents in fixed point, int32; int64 with an order of ties, which are the digits below.
        The products are overwritten."""
        scores = _fixed_point(products)
        if self.tie_order is None:
            return scores
        return scores.to(torch.int64) * len(self.tie_order) - self.tie_order[documents]

    def queries(self, vectors: Vectors) -> Tensor:
        mapped = self._load(vectors)
        if self._similarity == "euclidean":
            mapped = F.pad((mapped - self._centre) / self._radius, (0, 1), value=1.0)
        return unit_length(mapped).mul_(_UNITS)

    def documents(self, vectors: Vectors) -> Tensor:
        mapped = self._load(vectors)
        if self._similarity == "cosine":
            return unit_length(mapped)
        mapped = (mapped - self._centre) / self._radius
        if self._similarity == "euclidean":
            mapped = torch.cat([mapped, -0.5 * mapped.square().sum(1, keepdim=True)], 1)
        return mapped

    def _parts(self, corpus: Vectors, rows: int = 4096) -> Iterator[Tensor]:
        for start in range(0, len(corpus), rows):
            yield self._load(corpus[start : start + rows])

    def _load(self, vectors: Vectors) -> Tensor:
        if not isinstance(vectors, Tensor):
            vectors = torch.from_numpy(np.array(vectors, dtype=np.float64))  # a copy: a memory map may be read-only
        return vectors.to(self.device, torch.float64)


def _device(queries: Vectors, device: str | torch.device | None) -> torch.device:
    if device is None:
        device = queries.device if isinstance(queries, Tensor) else "cpu"
    device = torch.device(device)
    if device.type == "mps":
        raise MmclError("exact ranks need float64, which the device 'mps' does not have: use device='cpu'")
    return device
