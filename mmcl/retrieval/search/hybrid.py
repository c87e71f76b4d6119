"""The words of an index's things, beside their vectors: in ``lexical/`` of the index's folder."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmcl.data.cache.tokens import texts_of
from mmcl.data.rows import Rows
from mmcl.retrieval.index import FUSION, INDEX_FILE, LEXICAL, VectorIndex, open_index
from mmcl.retrieval.search.fusion import Fusion, Ranking
from mmcl.retrieval.search.lexical import LexicalIndex, Words
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import as_path, sha256_file

log = logging.getLogger("mmcl")


class Beside:
    """What lies beside the index in a folder, opened when it is asked for.

    Args:
        folder: of the index; None of one in memory.
        lexical: the words, in the place of those of the folder.
    """

    def __init__(self, folder: Path | None, lexical: LexicalIndex | None = None) -> None:
        self._folder, self._given = folder, lexical

    @cached_property
    def lexical(self) -> LexicalIndex:
        """The words. Raises ``MmclError`` if there are none, or the index is another one since."""
        if self._given is not None:
            return self._given
        if self._folder is None:
            raise MmclError("hybrid search needs words beside the vectors; give Searcher a lexical index")
        if not (self._folder / LEXICAL).exists():
            raise MmclError(
                f"{self._folder}: no words beside its vectors, which hybrid search needs; add them with: "
                f"mmcl index lexical {self._folder} SOURCE --column text"
            )
        lexical = LexicalIndex.load(self._folder / LEXICAL)
        if lexical.index not in (None, sha256_file(self._folder / INDEX_FILE)):
            raise MmclError(
                f"{self._folder}: the index has changed since its words were added from {lexical.source}; add them "
                f"anew with: mmcl index lexical {self._folder} SOURCE --column text"
            )
        return lexical

    @cached_property
    def fusion(self) -> Fusion:
        """What was learned for this index, else reciprocal rank fusion."""
        path = None if self._folder is None else self._folder / FUSION
        return Fusion.load(path) if path is not None and path.is_file() else Fusion()

    def keep(self, fusion: Fusion) -> None:
        """Have hybrid searches of this folder fuse like this from now on."""
        if self._folder is None:
            raise MmclError("the index has no folder in which weights can be kept")
        fusion.save(self._folder / FUSION)
        self.__dict__.pop("fusion", None)

    def ranking(
        self,
        index: VectorIndex,
        queries: Sequence[Words],
        k: int,
        *,
        where: str | None,
        without: Sequence[Collection[str]],
    ) -> Ranking:
        """The k best by words for each query, without the ids (as text) that are left out of each. A condition on the
        columns of ``index`` is fulfilled by an id of which any vector fulfils it: words are of an id, not of one of its
        vectors."""

        def keep(query: int, ids: np.ndarray) -> np.ndarray:
            passes = np.array([str(name) not in without[query] for name in ids.tolist()], dtype=bool)
            if where is not None and passes.any():
                passes[passes] = index.has(ids[passes], where=where)
            return passes

        return self.lexical.search(queries, k, keep=None if where is None and not any(without) else keep)


def add_words(
    folder: str | Path,
    texts: Sequence[str | None],
    ids: Sequence[Any],
    *,
    language: str = "english",
    source: str | None = None,
    show_progress: bool | None = None,
) -> LexicalIndex:
    """Add the words of its things to the index in a folder, for hybrid search; words already there are replaced.

    Args:
        folder: of the index.
        texts: N of them.
        ids: N, of the index; of equal ids the best text counts. Texts of ids that the index lacks, such as those of
            images that could not be read, are left out, and their number is logged.
        language: see :meth:`mmcl.retrieval.LexicalIndex.build`.
        source: what the texts are, to be said by messages.
        show_progress: a bar on stderr; None shows it on a terminal.

    Raises:
        MmclError: there is no index, it knows none of the ids, or as ``LexicalIndex.build``.
        OSError: the disk is full or refuses.
    """
    folder = as_path(folder)
    index = open_index(folder)
    names = ids_of(index, ids)
    known = index.has(names)
    kept = np.flatnonzero(known).tolist()
    some = f", such as {names[int(np.argmin(known))]!r}" if len(names) else ""
    if not kept:
        raise MmclError(
            f"{source or 'the texts'}: the index knows none of {len(names):,} ids{some}; name the column of ids (--id)"
        )
    if not known.all():
        left_out = len(names) - len(kept)
        log.warning("%d of %d texts left out: the index lacks their ids%s", left_out, len(names), some)
    lexical = LexicalIndex.build(
        [texts[row] for row in kept],
        [names[row] for row in kept],
        language=language,
        source=source,
        index=sha256_file(folder / INDEX_FILE),
        show_progress=show_progress,
    )
    lexical.save(folder / LEXICAL)
    return lexical


def texts_of_rows(rows: Rows, columns: Sequence[str]) -> list[str | None]:
    """The texts of columns, and of lists in them, of each row as one; None of a row without any.

    Raises:
        MmclError: there is no such column, or it holds no texts.
    """
    rows.require(columns)
    parts = [[texts_of(value) for value in rows.texts(column)] for column in columns]
    return [" ".join(text for texts in row for text in texts) or None for row in zip(*parts, strict=True)]


def ids_of(index: VectorIndex, names: Sequence[Any]) -> list[Any]:
    """Ids of the index's type: those of tables and of the command line are text.

    Raises:
        MmclError: the index's are numbers, and one is none.
    """
    if index.info().get("ids") != "int":
        return [str(name) for name in names]
    for name in names:
        if not str(name).removeprefix("-").isdecimal():
            raise MmclError(f"no id '{name}': those of the index are whole numbers")
    return [int(name) for name in names]
