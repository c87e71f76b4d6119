"""The most similar pairs of a corpus."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from mmcl.data.rows import Rows
from mmcl.data.sources.tar.rows import ShardRows
from mmcl.encoding.encoder import Encoder
from mmcl.retrieval.faiss.index import Index
from mmcl.retrieval.mining import search_by_index
from mmcl.retrieval.similar.items import Items, Side, as_cells, exploded, readable, with_random_access
from mmcl.retrieval.similar.pairs import BLOCK, NEIGHBOURS, Pairs, UnitVectors, similar_pairs
from mmcl.retrieval.similar.table_file import table_file
from mmcl.runtime.files import as_path, folder_beside
from mmcl.runtime.progress import progress

_WRITTEN = 8192  # pairs at a time
_FIRST = 1024  # rows that are compared before all are


@dataclass(frozen=True)
class Paraphrases:
    """What was mined.

    Attributes:
        path: the file.
        rows: that were read.
        distinct: things among them that have different words.
        pairs: in the file.
        highest: cosine of the first pair; NaN where there is none.
        lowest: that of the last.
    """

    path: str
    rows: int
    distinct: int
    pairs: int
    highest: float
    lowest: float


def mine_paraphrases(
    encoder: Encoder,
    source: Rows | ShardRows,
    side: Side,
    out: str | Path,
    count: int,
    *,
    threshold: float = -1.0,
    by_index: bool = False,
) -> Paraphrases:
    """Write the most similar pairs of a column into a file to train on.

    Texts with the same words, whatever their case and punctuation, count once: they are no paraphrases. The file has
    the columns ``anchor``, ``positive``, ``score``, ``anchor_id`` and ``positive_id``, best first.

    Args:
        encoder: the model.
        source: the rows.
        side: the column.
        out: a ``.parquet`` or ``.jsonl`` file.
        count: pairs.
        threshold: smallest cosine of a pair.
        by_index: search an index rather than compare all pairs: faster for many texts, and may miss some.

    Raises:
        MmclError: no such column, or the model does not embed what it holds.
    """
    path = as_path(out)
    with ExitStack() as stack:
        file = stack.enter_context(table_file(path))
        folder = stack.enter_context(folder_beside(path))
        rows = exploded(with_random_access(source, [side.column], folder), [side.column])
        items = Items(rows, side.column, by_words=True)
        vectors = items.embed(encoder, side, folder / "vectors")
        there = np.flatnonzero(readable(vectors))
        unit = UnitVectors(vectors if len(there) == len(vectors) else vectors[there])
        best = (best_pairs_by_index if by_index else best_pairs)(unit, count, threshold=threshold)
        for start in range(0, max(1, len(best.first)), _WRITTEN):
            part = slice(start, start + _WRITTEN)
            columns = {}
            for name, of in (("anchor", there[best.first[part]]), ("positive", there[best.second[part]])):
                columns[name] = as_cells(items, of)
                columns[f"{name}_id"] = pa.array(rows.select(items.first[of]).ids(), pa.string())
            scores = pa.array(best.scores[part], pa.float32())
            file.write(pa.table({**columns, "score": scores}))
    ends = best.scores[[0, -1]].tolist() if len(best.scores) else [float("nan")] * 2
    return Paraphrases(str(path), len(rows), len(items), len(best.first), *ends)


def best_pairs(
    vectors: UnitVectors, count: int, *, threshold: float = -1.0, show_progress: bool | None = None
) -> Pairs:
    """The ``count`` pairs of the highest cosine, best first; fewer where fewer reach ``threshold``.

    Exact, unlike the nearest few of each row: a row may stand in any number of pairs. Memory holds a small multiple of
    ``count``: what is worse than the worst of so many found so far is dropped as it comes.

    Args:
        vectors: N of them.
        count: pairs.
        threshold: smallest cosine of a pair.
        show_progress: a bar on stderr; None shows it on a terminal.
    """
    best = _Best(count, threshold)
    # A few rows among themselves tell what the others have to reach: of a first block nearly all would pass otherwise.
    few = UnitVectors(vectors.block(0, min(len(vectors), max(_FIRST, int((16 * count) ** 0.5)))))
    for found in similar_pairs(few, threshold, show_progress=False):
        best.add(found)
    best.settled()
    for found in similar_pairs(vectors, lambda: best.lowest, show_progress=show_progress):
        best.add(found)
    return best.sorted()


def best_pairs_by_index(
    vectors: UnitVectors, count: int, *, threshold: float = -1.0, show_progress: bool | None = None
) -> Pairs:
    """As :func:`best_pairs`, from an index: faster for many, and what the index does not find is missing.

    A row may stand in any number of pairs here too: it is searched with again, for twice as many, while its last hit
    is still among the best pairs.
    """
    index = Index.build(vectors.shards, np.arange(len(vectors)), show_progress=show_progress)
    best, rows, k = _Best(count, threshold), np.arange(len(vectors)), NEIGHBOURS
    while len(rows):
        last = np.empty(len(rows), np.float32)
        with progress("search", len(rows), "vectors", show_progress) as advance:
            for start in range(0, len(rows), BLOCK):
                some = rows[start : start + BLOCK]
                items, scores = search_by_index(index, vectors, vectors[some], k)
                last[start : start + BLOCK] = scores[:, -1]
                place, column = np.nonzero((scores >= best.lowest) & (items != some[:, None]))
                ends = np.sort(np.stack([some[place], items[place, column]]), axis=0)
                best.add(Pairs(ends[0], ends[1], scores[place, column]))
                advance(len(some))
        rows = rows[last >= best.settled()] if k < len(vectors) else rows[:0]
        k = min(2 * k, len(vectors))
    return best.sorted()


class _Best:
    """The best pairs so far, each of which may be added any number of times.

    Attributes:
        lowest: cosine below which a pair is none of them.
    """

    def __init__(self, count: int, threshold: float) -> None:
        self._count, self.lowest = count, threshold
        self._parts = [Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]

    def add(self, pairs: Pairs) -> None:
        self._parts.append(pairs)
        if sum(len(part.first) for part in self._parts) > 2 * self._count:
            self.settled()

    def settled(self) -> float:
        """``lowest``, of all that was added."""
        self._parts = [self.sorted()]
        if len(scores := self._parts[0].scores) == self._count:
            self.lowest = float(scores[-1])
        return self.lowest

    def sorted(self) -> Pairs:
        """Best first; of equal ones, in the order of their positions."""
        first, second, scores = (np.concatenate(columns) for columns in zip(*self._parts, strict=True))
        _, distinct = np.unique(first << 32 | second, return_index=True)
        first, second, scores = first[distinct], second[distinct], scores[distinct]
        if len(scores) > self._count:
            kept = scores >= np.partition(scores, -self._count)[-self._count]
            first, second, scores = first[kept], second[kept], scores[kept]
        order = np.lexsort((second, first, -scores))[: self._count]
        return Pairs(first[order], second[order], scores[order])
