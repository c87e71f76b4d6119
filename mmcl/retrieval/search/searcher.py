"""Searching an index with texts, images and things of its own, by the model that its vectors are from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmcl.data.processors.table import TableProcessor
from mmcl.data.rows import Rows
from mmcl.encoding import Encoder
from mmcl.encoding.load import load
from mmcl.encoding.prompts import for_queries, query_prompt
from mmcl.losses.logits.similarity import unit_rows
from mmcl.retrieval.index import VectorIndex, open_index
from mmcl.retrieval.search.belonging import check_belongs
from mmcl.retrieval.search.fusion import Fusion, Ranking
from mmcl.retrieval.search.hybrid import Beside, ids_of
from mmcl.retrieval.search.lexical import LexicalIndex
from mmcl.retrieval.search.matching import match_cosine
from mmcl.retrieval.search.queries import Like, is_mix, parts_of, shown
from mmcl.retrieval.search.results import Nearest, Result, nearest, results
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")

_LEAST_OF_MIX = 1e-3  # a shorter sum of unit vectors is rounding


class Searcher:
    """An index with the encoder of its queries, which embeds them as ``mmcl eval retrieval`` does: behind the model's
    prompt for queries where texts are searched, in its precision, cut to the index's dimension, images decoded exactly.

    Args:
        index: the folder of one, or the index itself.
        model: the encoder, or its name or folder; the one that the index names if absent.
        tower: of the model, which embeds the queries, where it has several of a kind; that of texts called ``query`` if
            absent. The index may be of another's vectors: of answers, which are searched with questions.
        lexical: the words of the same things, for hybrid search; that of the folder (``lexical/``) if absent.
        device: where a model that is loaded computes, and
        dtype: in what, see :func:`mmcl.load`.

    Raises:
        MmclError: there is no index, no model or no such tower, the index names no model, or its vectors are another
            model's: of other weights, another prompt, or another dimension.

    >>> searcher = Searcher("index")
    >>> searcher.search("red shoes", k=3, where="price < 50")
    >>> searcher.search([("red shoes", 1), (Path("boot.jpg"), 0.5), ("leather", -0.4)])
    >>> searcher.search(["a cat", Like("photo-17")], hybrid=True)  # two queries
    """

    def __init__(
        self,
        index: VectorIndex | str | Path,
        model: Encoder | str | Path | None = None,
        *,
        tower: str | None = None,
        lexical: LexicalIndex | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        folder = index if isinstance(index, str | Path) else None
        self.index: VectorIndex = index if not isinstance(index, str | Path) else open_index(index)
        encoder = model if isinstance(model, Encoder) else _load(self.index, folder, model, device, dtype)
        check_belongs(encoder, self.index, "the index" if folder is None else str(folder))
        self.encoder: Encoder = for_queries(encoder) if tower is None else encoder.only(tower)
        self._beside = Beside(None if folder is None else Path(folder), lexical)
        documents = (self.index.encoder or {}).get("documents")
        self._documents = "text" if documents is not None or self.encoder.modalities == {"text"} else "image"
        self.prompt: str | None = query_prompt(self.encoder) if self._documents == "text" else None
        """The name of the prompt that texts are embedded behind; None for the model's default one."""

    @property
    def lexical(self) -> LexicalIndex:
        """The words of the index's things.

        Raises:
            MmclError: there is no lexical index.
        """
        return self._beside.lexical

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        where: str | None = None,
        hybrid: bool | Fusion = False,
        match: bool | float = False,
        modality: str | None = None,
    ) -> list[Any]:
        """The k best of the index.

        Args:
            queries: a query or a list of them: a str is text; a path, PIL image or uint8 (H, W, 3) array is an image; a
                :class:`mmcl.retrieval.Like` is a thing of the index, which is no result of its own; a list of
                (input, weight) is a mix of these, of which the weighted sum of unit vectors is searched by, weights
                below 0 for what it should not be.
            k: how many.
            where: a condition on the index's columns, such as ``"category = 'shoes' and price < 50"``.
            hybrid: also search the words, by the :class:`mmcl.retrieval.Fusion` given; True for the one kept beside
                the index, or without one by reciprocal ranks. Queries without words are ranked by vectors alone.
            match: only results that are the same thing as the query, by the threshold that ``mmcl eval threshold`` kept
                with the model: at a precision, such as 0.95, or True for that of the best F1.
            modality: ``text`` or ``image`` for all inputs, as for :meth:`mmcl.Encoder.encode`.

        Returns:
            Of a single query its k :class:`Result` s, best first; of a list, a list of these for each. Fewer where the
            index, or what passes ``where``, has fewer.

        Raises:
            MmclError: a query is empty, a mix comes to nothing, an id or a column is unknown, there is no lexical index
                for a hybrid search, or no threshold to match by.
        """
        single = is_mix(queries) or not isinstance(queries, list)
        asked = [parts_of(query) for query in ([queries] if single else queries)]
        if not asked:
            return []
        if hybrid:
            fusion = hybrid if isinstance(hybrid, Fusion) else self._beside.fusion
            near, words = self._both(asked, max(k, fusion.depth), where, modality)
            found = results(self.index, fusion.fuse((near.ranking, words), k), near, where)
        else:
            near = nearest(self.index, self.embed(asked, modality), k, where, _own(asked))
            found = results(self.index, near.ranking, near)
        if match:
            if hybrid or self.index.similarity != "cosine":
                raise MmclError("matches are told by their cosine; search an index of cosines, without words")
            least = [match_cosine(self.encoder, parts, self._documents, match) for parts in asked]
            found = [[one for one in row if one.score >= cut] for row, cut in zip(found, least, strict=True)]
        return found[0] if single else found

    def keep_fusion(self, fusion: Fusion) -> None:
        """Have hybrid searches of this index's folder fuse like this from now on.

        Raises:
            MmclError: the index has no folder.
        """
        self._beside.keep(fusion)

    def rankings(
        self, queries: Sequence[Any], depth: int, *, where: str | None = None, modality: str | None = None
    ) -> tuple[Ranking, Ranking]:
        """What vectors and what words find, each ``depth`` results for each query, see :meth:`search`; what a hybrid
        search fuses.

        Raises:
            MmclError: see there.
        """
        near, words = self._both([parts_of(query) for query in queries], depth, where, modality)
        return near.ranking, words

    def _both(
        self, asked: Sequence[Sequence[tuple[Any, float]]], depth: int, where: str | None, modality: str | None
    ) -> tuple[Nearest, Ranking]:
        """The nearest by vectors, and the best by words."""
        words = [
            [(part, weight) for part, weight in parts if isinstance(part, str) and modality != "image"]
            for parts in asked
        ]
        if wordless := sum(not texts for texts in words):
            log.warning("%d of %d queries have no words: ranked by vectors alone", wordless, len(words))
        by_words = self._beside.ranking(self.index, words, depth, where=where, without=_own(asked))
        return nearest(self.index, self.embed(asked, modality), depth, where, _own(asked)), by_words

    def embed(self, queries: Sequence[Any], modality: str | None = None) -> np.ndarray:
        """(Q, D) float32: what the index is searched by for each query, see :meth:`search`.

        Raises:
            MmclError: see there.
        """
        asked = [parts_of(query) for query in queries]
        inputs = [part for parts in asked for part, _ in parts]
        places = [place for place, given in enumerate(inputs) if not isinstance(given, Like)]
        own = [place for place, given in enumerate(inputs) if isinstance(given, Like)]
        vectors = np.empty((len(inputs), self.index.dim), np.float32)
        if places:
            vectors[places] = self._encode([inputs[place] for place in places], modality)
        if own:
            vectors[own] = self.index.vectors(ids_of(self.index, [inputs[place].id for place in own]))
        mixed, start = [], 0
        for query, parts in zip(queries, asked, strict=True):
            some = vectors[start : start + len(parts)]
            start += len(parts)
            mixed.append(some[0] if len(parts) == 1 and parts[0][1] == 1 else _mixed(some, parts, query))
        return np.stack(mixed) if mixed else np.empty((0, self.index.dim), np.float32)

    def search_rows(
        self, rows: Rows, wanted: Sequence[str], k: int = 10, *, ids: str | None = None, without: str | None = None,
        where: str | None = None,
    ) -> list[list[Result]]:  # fmt: skip
        """As :meth:`search`, for rows of a table, by the tower of tables that embeds them.

        Args:
            rows: with the columns that the tower reads.
            wanted: the ids of those to search by.
            k: how many.
            ids: their column; ``id`` or ``_id``, else the numbers of the rows, if absent.
            without: a column that lists the ids of what is left out of a row's own results, such as its history.
            where: a condition on the index's columns.

        Raises:
            MmclError: there is no such column, no row of such an id, or the model embeds no rows.
        """
        processor = self.encoder.embedder("table").processor
        if not isinstance(processor, TableProcessor):
            raise MmclError(f"model '{self.encoder.name}' embeds no rows of tables; leave out --rows")
        rows.require([*processor.columns, *([without] if without else [])])
        places = {name: row for row, name in reversed(list(enumerate(rows.ids(ids))))}
        for name in wanted:
            if name not in places:
                raise MmclError(f"{rows.name}: no row has the id '{name}'; it has such as '{next(iter(places), '')}'")
        part = rows.select([places[name] for name in wanted])
        left_out = [set(map(str, of or ())) for of in part.column(without)] if without else [set[str]()] * len(wanted)
        records = part.records({name: name for name in processor.columns}, processor.images)
        vectors = self.encoder.encode(records, "table", show_progress=False)
        near = nearest(self.index, vectors, k, where, left_out)
        return results(self.index, near.ranking, near)

    def _encode(self, inputs: list[Any], modality: str | None) -> np.ndarray:
        texts = modality == "text" or (modality is None and any(isinstance(given, str) for given in inputs))
        return self.encoder.encode(
            inputs,
            modality,
            truncate_dim=self.index.dim if self.index.dim != self.encoder.dim else None,
            prompt=self.prompt if texts else None,
            show_progress=False,
        )


def _load(index: VectorIndex, folder: str | Path | None, model: str | Path | None, device: str, dtype: str) -> Encoder:
    """The encoder of an index's queries, images decoded as the evaluation does."""
    name, where = str(model or index.model or ""), "the index" if folder is None else folder
    if not name:
        raise MmclError(f"{where}: it does not say which model made its vectors; name it with --model")
    if model is None and Path(name).is_absolute() and not Path(name).exists():
        raise MmclError(f"{where}: its model is no longer at {name}; say with --model where it is now")
    return load(name, device, dtype, exact_decoding=True)


def _own(asked: Sequence[Sequence[tuple[Any, float]]]) -> list[set[str]]:
    """The ids, as text, of the things of the index that each query is made of."""
    return [{str(part.id) for part, _ in parts if isinstance(part, Like)} for parts in asked]


def _mixed(vectors: np.ndarray, parts: Sequence[tuple[Any, float]], query: Any) -> np.ndarray:
    """The unit vector of the weighted sum of unit vectors."""
    total = np.array([weight for _, weight in parts], np.float32) @ unit_rows(vectors)
    if np.linalg.norm(total) < _LEAST_OF_MIX:
        raise MmclError(f"'{shown(query)}' comes to nothing: its parts cancel each other; change the weights")
    mixed: np.ndarray = unit_rows(total[None])[0]
    return mixed
