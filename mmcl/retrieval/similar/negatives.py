"""Hard negatives for a file of pairs, written as a file that methods train on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from mmcl.data.identity import mix
from mmcl.data.rows import Rows
from mmcl.data.sources.tar.rows import ShardRows
from mmcl.encoding.encoder import Encoder
from mmcl.retrieval.exact import exact_search
from mmcl.retrieval.faiss.index import Index
from mmcl.retrieval.mining import GuideVectors, KnownPositives, Rules, nearest_others, search_by_index, similarity_to
from mmcl.retrieval.similar.items import Items, Side, as_cells, exploded, readable, with_random_access
from mmcl.retrieval.similar.table_file import TableFile, table_file
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import as_path, folder_beside
from mmcl.runtime.progress import progress

ROWS = 8192  # for which negatives are chosen at a time
_FOUND = 1 << 24  # items that are in memory at a time


@dataclass(frozen=True)
class Pairs:
    """Rows of pairs.

    Attributes:
        rows: a table, or tar shards, of which a copy is made.
        anchor: what negatives are for.
        positive: what belongs to it.
    """

    rows: Rows | ShardRows
    anchor: Side
    positive: Side


@dataclass(frozen=True)
class Corpus:
    """Where negatives come from, if not from the positives of all rows.

    Attributes:
        rows: of them.
        item: the column.
    """

    rows: Rows | ShardRows
    item: Side


@dataclass(frozen=True)
class Options:
    """How negatives are chosen and written, beside the :class:`~mmcl.retrieval.mining.Rules`.

    Attributes:
        duplicate_score: an item whose cosine to the anchor or to its positive is at least this is the same thing as
            these, and no negative; of the anchor only where both are of one kind. None: only equal words and bytes are.
        too_few: ``keep`` or ``drop`` rows for which fewer negatives pass than are wanted.
        seed: of what is drawn at random.
        guide: a model; what it holds closer to an anchor than the anchor's positive is no negative.
        by_index: search an index rather than compare each anchor with all items: faster for many, and may miss some.
    """

    duplicate_score: float | None = 0.99
    too_few: Literal["keep", "drop"] = "keep"
    seed: int = 0
    guide: Encoder | None = None
    by_index: bool = False


@dataclass
class MinedFile:
    """What was mined.

    Attributes:
        path: the file.
        rows: pairs that were read.
        left_out: those without an anchor or a positive that can be used.
        written: rows in the file.
        too_few: rows for which fewer negatives passed than are wanted.
        negatives: in the file.
        corpus: distinct items that they are chosen from.
        refused: {reason: items among the nearest ``depth`` that it kept from being negatives}. An item is counted by
            the first reason.
        positive_score: mean cosine of the rows written.
        negative_score: mean cosine of the negatives written.
    """

    path: str
    rows: int = 0
    left_out: int = 0
    written: int = 0
    too_few: int = 0
    negatives: int = 0
    corpus: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    positive_score: float = 0.0
    negative_score: float = 0.0


def mine_negatives(
    encoder: Encoder,
    pairs: Pairs,
    out: str | Path,
    rules: Rules | None = None,
    *,
    corpus: Corpus | None = None,
    options: Options | None = None,
) -> MinedFile:
    """Find hard negatives for every pair, by exact search or an index, and write a file of rows to train on.

    A pair's negatives are among the ``rules.depth`` items nearest to its anchor by cosine. Never among them is anything
    with the same words (or bytes) as the anchor or the positive, or that is paired with an equal anchor in any row,
    and no two negatives of a row have the same words.

    The file has the columns ``id``; ``anchor`` and ``positive``, or, where one of them is an image and the other a
    text, ``image`` and ``text``; ``negative``, ``negative_2``, …; and the cosines to the anchor, ``positive_score``,
    ``negative_score``, ``negative_2_score``, …. Where fewer pass, the last ones are empty. Images are paths, or, in a
    Parquet file, bytes. Vectors are kept on disk beside the file while it is written.

    Args:
        encoder: the model.
        pairs: the rows.
        out: a ``.parquet`` or ``.jsonl`` file.
        rules: what passes, and how many are taken; one negative, the nearest, if absent.
        corpus: where negatives come from; the positives of all rows without one.
        options: see :class:`Options`.

    Raises:
        MmclError: no such column, a model that does not embed what it holds, no usable row, or rules that no item can
            pass.
    """
    rules, options = rules or Rules(), options or Options()
    if rules.count < 1 or rules.skip < 0 or rules.depth < rules.skip + rules.count:
        raise MmclError(
            f"{rules.count} negatives of the ranks {rules.skip} to {rules.depth}, which do not hold so many; widen the "
            "range"
        )
    path = as_path(out)
    with ExitStack() as stack:
        file = stack.enter_context(table_file(path))
        folder = stack.enter_context(folder_beside(path))
        mining = _Mining(encoder, pairs, corpus, options, rules, folder)
        mining.write(file)
        del mining.anchors, mining.positives, mining.corpus  # memory maps of what goes with the folder
    mining.report.path = str(path)
    return mining.report


def usual_columns(rows: Rows | ShardRows, anchor: str | None = None, positive: str | None = None) -> tuple[str, str]:
    """The columns of anchors and positives: those named, else ``image`` and ``text``, or ``anchor`` and ``positive``.

    Raises:
        MmclError: neither are there.
    """
    if anchor is not None and positive is not None:
        return anchor, positive
    rows.require([name for name in (anchor, positive) if name is not None])
    for one, other in (("image", "text"), ("anchor", "positive")):
        chosen = anchor or one, positive or other
        if set(chosen) <= set(rows.column_names):
            return chosen
    raise MmclError(
        f"{rows.name}: no columns image and text, or anchor and positive; name them with --anchor and --positive; it "
        f"has {', '.join(rows.column_names)}"
    )


class _Embedded(NamedTuple):
    """Things, their (M, D) vectors, and (M, E) those of a guide."""

    items: Items
    vectors: np.ndarray
    guide: np.ndarray | None


class _Mining:
    """The state of :func:`mine_negatives`."""

    def __init__(
        self, encoder: Encoder, pairs: Pairs, corpus: Corpus | None, options: Options, rules: Rules, folder: Path
    ) -> None:
        self.rules, self.options, self.folder, self.encoder = rules, options, folder, encoder
        columns = [pairs.anchor.column, pairs.positive.column]
        self.rows = exploded(with_random_access(pairs.rows, columns, folder), columns)
        self.anchors = self._embedded(self.rows, pairs.anchor, "anchors")
        self.positives = self._embedded(self.rows, pairs.positive, "positives")
        self.corpus = self.positives
        if corpus is not None:
            (folder / "corpus").mkdir()
            rows = exploded(
                with_random_access(corpus.rows, [corpus.item.column], folder / "corpus"), [corpus.item.column]
            )
            self.corpus = self._embedded(rows, corpus.item, "negatives")
        pair = np.stack([self.anchors.items.of_rows, self.positives.items.of_rows])
        usable = np.asarray((pair >= 0).all(0))
        usable[usable] = (
            readable(self.anchors.vectors)[pair[0, usable]] & readable(self.positives.vectors)[pair[1, usable]]
        )
        self.usable = np.flatnonzero(usable)
        if not len(self.usable):
            raise MmclError(f"{self.rows.name}: no row has both '{columns[0]}' and '{columns[1]}'; name other columns")
        self._anchor_of, self._positive_of = pair[:, self.usable]
        self._readable = readable(self.corpus.vectors)
        self._index = None
        if options.by_index:
            self._index = Index.build(self.corpus.vectors, similarity="dot")  # of unit vectors, and zeros for no image
        identities = self.corpus.items.identities
        every = np.arange(len(self.usable))
        self.known = KnownPositives(
            (every, self.anchors.items.identities[self._anchor_of]),
            (every, self.positives.items.identities[self._positive_of]),
            identities,
            len(every),
        )
        self.report = MinedFile("", len(self.rows), len(self.rows) - len(self.usable), corpus=len(self.corpus.items))

    def write(self, file: TableFile) -> None:
        """Mine block by block and write each."""
        sums, written = np.zeros(2), self.report
        with progress("mine", len(self.usable), "rows") as advance:
            for rows in self._blocks():
                items, scores, positive = self._mined(rows)
                enough = (items >= 0).sum(1) >= self.rules.count
                kept = enough | (self.options.too_few == "keep")
                written.too_few += int((~enough).sum())
                written.written += int(kept.sum())
                written.negatives += int((items[kept] >= 0).sum())
                sums += positive[kept].sum(), scores[kept][items[kept] >= 0].sum()
                file.write(self._table(rows[kept], items[kept], scores[kept], positive[kept]))
                advance(len(rows))
        written.positive_score = float(sums[0] / max(1, written.written))
        written.negative_score = float(sums[1] / max(1, written.negatives))

    def _blocks(self) -> Iterator[np.ndarray]:
        """Numbers of usable rows, as many at a time as what is looked at for them fits into memory."""
        starts = range(0, len(self.usable), ROWS)
        waiting = [np.arange(start, min(start + ROWS, len(self.usable))) for start in reversed(starts)]
        while waiting:
            rows = waiting.pop()
            most = self.rules.depth + int(np.diff(self.known.of(rows).indptr).max())
            if len(rows) > 1 and len(rows) * most > _FOUND:
                waiting += [rows[len(rows) // 2 :], rows[: len(rows) // 2]]
            else:
                yield rows

    def _mined(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Items (Q, count), -1 for none, their scores, and those of the positives (Q,)."""
        anchor_of, positive_of = self._anchor_of[rows], self._positive_of[rows]
        distinct, back = np.unique(anchor_of, return_inverse=True)
        queries = self.anchors.vectors[distinct]

        def search(k: int) -> tuple[np.ndarray, np.ndarray]:
            if self._index is None:
                items, scores = exact_search(queries, self.corpus.vectors, k, similarity="dot")
            else:
                items, scores = search_by_index(self._index, self.corpus.vectors, queries, k)
            return items[back], scores[back]

        known = self.known.of(rows)
        items, scores = nearest_others(search, self.rules.depth, known)
        positives = self.positives.vectors[positive_of]
        positive = np.einsum("qd,qd->q", queries[back], positives)
        passes = np.isfinite(scores)
        self._refuse("cannot be read", passes, self._readable[items])
        self._refuse("same words as a nearer one", passes, ~self._repeated(items, passes))
        if (same := self.options.duplicate_score) is not None:
            alike = similarity_to(positives, self.corpus.vectors, items) >= same
            if self.anchors.items.modality == self.corpus.items.modality:
                alike |= scores >= same
            self._refuse("near-duplicates", passes, ~alike)
        if self.anchors.guide is not None:
            self._refuse("guide", passes, ~self._guide(anchor_of, positive_of).closer(items))
        self._refuse("range, margin or score", passes, self.rules.passing(scores, positive))
        seeds = mix(torch.from_numpy(self.usable[rows]), self.options.seed).numpy()
        ranks = self.rules.chosen(passes, seeds)
        chosen = np.where(ranks >= 0, np.take_along_axis(items, np.maximum(ranks, 0), axis=1), -1)
        return chosen, np.take_along_axis(scores, np.maximum(ranks, 0), axis=1), positive

    def _refuse(self, reason: str, passes: np.ndarray, allowed: np.ndarray) -> None:
        refused = passes & ~allowed
        self.report.refused[reason] = self.report.refused.get(reason, 0) + int(refused.sum())
        passes &= allowed

    def _repeated(self, items: np.ndarray, there: np.ndarray) -> np.ndarray:
        """Which items of a row have the words of one before them."""
        words = np.where(there, self.corpus.items.identities[items], 0)
        order = np.argsort(words, axis=1, kind="stable")
        ordered = np.take_along_axis(words, order, axis=1)
        again = np.pad(ordered[:, 1:] == ordered[:, :-1], ((0, 0), (1, 0)))
        repeated = np.empty_like(again)
        np.put_along_axis(repeated, order, again, axis=1)
        return repeated

    def _guide(self, anchor_of: np.ndarray, positive_of: np.ndarray) -> GuideVectors:
        anchors, positives, corpus = self.anchors.guide, self.positives.guide, self.corpus.guide
        assert anchors is not None, "the caller looks"
        assert positives is not None, "all sides have one"
        assert corpus is not None, "all sides have one"
        of_rows = anchors[anchor_of]
        return GuideVectors(of_rows, corpus, np.einsum("qe,qe->q", of_rows, positives[positive_of]))

    def _table(self, rows: np.ndarray, items: np.ndarray, scores: np.ndarray, positive: np.ndarray) -> pa.Table:
        """The rows of the file."""
        numbers = self.usable[rows]
        one, other = self._names()
        columns: dict[str, Any] = {
            "id": pa.array(self.rows.select(numbers).ids(), pa.string()),
            one: as_cells(self.anchors.items, self._anchor_of[rows]),
            other: as_cells(self.positives.items, self._positive_of[rows]),
            "positive_score": pa.array(positive, pa.float32()),
        }
        for number, (of, near) in enumerate(zip(items.T, scores.T, strict=True), start=1):
            name = "negative" if number == 1 else f"negative_{number}"
            columns[name] = as_cells(self.corpus.items, of)
            columns[f"{name}_score"] = pa.array(near, pa.float32(), mask=of < 0)
        return pa.table(columns)

    def _names(self) -> tuple[str, str]:
        """What the methods call the two columns."""
        one, other = self.anchors.items.modality, self.positives.items.modality
        return ("anchor", "positive") if one == other else (one, other)

    def _embedded(self, rows: Rows, side: Side, name: str) -> _Embedded:
        items = Items(rows, side.column)
        vectors = items.embed(self.encoder, side, self.folder / f"{name}.vectors")
        guide = self.options.guide
        # A guide has towers and prompts of its own.
        of_guide = None if guide is None else items.embed(guide, Side(side.column), self.folder / f"{name}.guide")
        return _Embedded(items, vectors, of_guide)
