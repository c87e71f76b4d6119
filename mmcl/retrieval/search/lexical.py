"""Search by words: BM25 over texts (Robertson and Zaragoza 2009), computed by bm25s (Lù 2024, arXiv:2407.03618)."""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import pyarrow as pa
from pydantic import Field

from mmcl.encoding.corpora.stored import (
    FileRecord,
    Stored,
    check_file,
    file_record,
    id_table,
    read_description,
    read_table,
    to_numpy,
    validated,
    write_description,
    write_table,
)
from mmcl.retrieval.search.fusion import Ranking
from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.files import as_path, atomic_folder
from mmcl.runtime.progress import progress

LANGUAGES = (
    *("danish", "dutch", "english", "french", "german", "italian", "norwegian", "portuguese", "russian"),
    *("spanish", "swedish", "turkish"),
)
"""Languages with stop words and a stemmer. ``none`` takes every word as it stands."""

Keep: TypeAlias = Callable[[int, np.ndarray], np.ndarray]
"""From the number of a query and ids (n,) to bool (n,): which may be found."""
_Passing: TypeAlias = Callable[[np.ndarray], np.ndarray]
Words: TypeAlias = str | Sequence[tuple[str, float]]
"""A query: a text, or texts with their weights."""

_FORMAT, _VERSION = "mmcl lexical index", 1
_DESCRIPTION, _IDS = "lexical.json", "ids.parquet"
_REBUILD = "build it with: mmcl index lexical INDEX"
_KEEP_AT_ONCE = 1024
# Chinese and Japanese are written without spaces: there each character is a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


class _About(Stored):
    language: str
    k1: float
    b: float
    count: Annotated[int, Field(ge=1)]
    source: str | None
    index: str | None = None
    files: dict[str, FileRecord]


class LexicalIndex:
    """Texts that answer which of them share the rarest words with a query. Made by :meth:`build` or :meth:`load`.

    The score of a document for a query is the sum over the query's words t of Lucene's BM25 (Kamphuis et al. 2020):

        ln(1 + (N - n(t) + 0.5) / (n(t) + 0.5)) · f(t) / (f(t) + k1 · (1 - b + b · length / mean length))

    with N documents, of which n(t) contain t, and f(t) the times that it stands in this one.

    Attributes:
        language: whose stop words are left out and whose endings are cut off, or ``none``.
        source: what the texts are, if known.
        index: identifies the index of vectors that it was built beside, if any.

    >>> lexical = LexicalIndex.build(["a red shoe", "two red shoes", "a hat"], ["a", "b", "c"])
    >>> lexical.search(["hats"], k=2).ids.tolist()
    [['c', None]]
    """

    def __init__(self, bm25: Any, ids: pa.Array, about: dict[str, Any]) -> None:
        self._bm25 = bm25
        self._ids = to_numpy(ids)
        self._repeated = len(ids) != len(ids.unique())
        self._about = about
        self.language: str = about["language"]
        self.source: str | None = about["source"]
        self.index: str | None = about["index"]

    def __len__(self) -> int:
        return len(self._ids)

    @classmethod
    def build(
        cls,
        texts: Sequence[str | None],
        ids: Any = None,
        *,
        language: str = "english",
        k1: float = 1.2,
        b: float = 0.75,
        source: str | None = None,
        index: str | None = None,
        show_progress: bool | None = None,
    ) -> LexicalIndex:
        """Build an index.

        Args:
            texts: N of them; None is one without words.
            ids: N integers or strings, which a search returns, else 0 … N-1. Of equal ids the best text counts.
            language: one of :data:`LANGUAGES`, or ``none``.
            k1: how slowly repetitions of a word saturate, at least 0.
            b: how much long texts are held against them, in [0, 1].
            source: what the texts are, to be said by messages.
            index: identifies the index of vectors of the same ids.
            show_progress: a bar on stderr; None shows it on a terminal.

        Raises:
            MmclError: no text has a word, ids that do not fit, an unknown language, or k1 or b out of range.
        """
        check_language(language)
        if not (k1 >= 0 and 0 <= b <= 1):
            raise MmclError(f"BM25: k1 is {k1} and b is {b}; k1 is 0 or more, and b between 0 and 1")
        import bm25s  # looks for jax and numba first

        table = id_table(range(len(texts)) if ids is None else ids, len(texts))
        number: dict[str, int] = {}
        documents: list[list[int]] = []
        with progress("index words", len(texts), "texts", show_progress) as advance:
            for text in texts:
                documents.append([number.setdefault(word, len(number)) for word in words_of(text or "", language)])
                advance(1)
        if not number:
            raise MmclError(f"{source or 'the texts'}: none of {len(texts):,} has a word to be found by")
        bm25 = bm25s.BM25(k1=k1, b=b, method="lucene")
        bm25.index((documents, number), create_empty_token=False, show_progress=False)
        about = {"language": language, "k1": k1, "b": b, "count": len(texts), "source": source, "index": index}
        return cls(bm25, table["id"].combine_chunks(), about)

    def search(self, queries: Sequence[Words], k: int = 10, *, keep: Keep | None = None) -> Ranking:
        """The k best documents for each query, best first.

        Args:
            queries: Q texts; or lists of (text, weight), whose scores are added up so weighted.
            k: how many.
            keep: which ids a query may find, asked for the best ones until k pass; all if absent.

        Returns:
            ids (Q, k) and scores (Q, k) float32. A document scores above 0 to be found; places left have id None, which
            makes the ids an object array, and score -inf. Equal scores stand in the order of the documents.

        Raises:
            MmclError: k < 1.
        """
        if k < 1:
            raise MmclError(f"k is {k!r}; it must be a whole number from 1 up")
        ids = np.full((len(queries), k), None, dtype=object)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        for row, query in enumerate(queries):
            positions, best = self._best(query, k, None if keep is None else partial(keep, row))
            ids[row, : len(positions)], scores[row, : len(positions)] = self._ids[positions].tolist(), best
        if not np.isinf(scores).any():
            ids = ids.astype(self._ids.dtype)
        return Ranking(ids, scores, floor=0.0)

    def _best(self, query: Words, k: int, keep: _Passing | None) -> tuple[np.ndarray, np.ndarray]:
        """Positions and scores of at most k documents, no two of one id."""
        scores = self.scores(query)
        found = np.flatnonzero(scores > 0)
        if keep is None and not self._repeated and len(found) > k:  # those that reach the k-th best
            found = found[scores[found] >= np.partition(scores[found], -k)[-k]]
        found = found[np.argsort(-scores[found], kind="stable")]
        if self._repeated:
            found = found[np.sort(np.unique(self._ids[found].astype(str), return_index=True)[1])]
        if keep is not None:
            found = _passing(found, self._ids, k, keep)
        return found[:k], scores[found[:k]]

    def scores(self, query: Words) -> np.ndarray:
        """(N,) float32: the score of every document; 0 of one that shares no word with the query."""
        total = np.zeros(len(self), np.float32)
        for text, weight in [(query, 1.0)] if isinstance(query, str) else query:
            if known := self._bm25.get_tokens_ids(list(words_of(text, self.language))):
                total += np.float32(weight) * self._bm25.get_scores_from_ids(known)
        return total

    def info(self) -> dict[str, Any]:
        """What the index is: language, k1, b, count, source, and how many words it knows."""
        return {name: value for name, value in self._about.items() if name != "index"} | {
            "words": len(self._bm25.vocab_dict)
        }

    def save(self, folder: str | Path) -> None:
        """Write a folder, completely or not at all; one already there is replaced. bm25s opens it, too.

        Raises:
            OSError: the disk is full or refuses.
        """
        with atomic_folder(as_path(folder)) as beside:
            self._bm25.save(beside, show_progress=False)
            write_table(beside / _IDS, id_table(pa.array(self._ids), len(self)))
            files = {path.name: file_record(path) for path in sorted(beside.iterdir())}
            write_description(beside / _DESCRIPTION, _FORMAT, _VERSION, self._about | {"files": files})

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = True) -> LexicalIndex:
        """Read what :meth:`save` wrote; the scores stay on disk, memory-mapped.

        Args:
            folder: where it lies.
            verify: compare the files' SHA-256, else their sizes alone.

        Raises:
            MmclError: there is none, a file is missing or damaged, or a newer mmcl wrote it.
        """
        import bm25s

        folder = as_path(folder)
        path = folder / _DESCRIPTION
        about = validated(_About, read_description(path, _FORMAT, _VERSION, _REBUILD), path, _REBUILD).model_dump()
        for name, record in about.pop("files").items():
            check_file(folder / name, record, checksum=verify, cure=_REBUILD)
        table = read_table(folder / _IDS)
        try:
            bm25 = bm25s.BM25.load(folder, mmap=True, show_progress=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MmclError(f"{folder}: damaged ({error!r:.200}); {_REBUILD}") from None
        check_language(about["language"])
        if not len(table) == about["count"] == bm25.scores["num_docs"]:
            raise MmclError(f"{folder}: its files do not belong together; {_REBUILD}")
        return cls(bm25, table["id"].combine_chunks(), about)


def check_language(language: str) -> None:
    """Raise ``MmclError`` unless it is one of :data:`LANGUAGES` or ``none``."""
    known = (*LANGUAGES, "none")
    if language not in known:
        raise MmclError(f"language '{language}' is not known; {nearest(language, known)}")


def words_of(text: str, language: str = "english") -> Iterator[str]:
    """The words of a text that are searched by: in lower case, compatibility characters as usual ones, without the
    language's stop words and endings. Each character of Chinese and Japanese is a word."""
    left_out, stem = _analysis(language)
    for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold()):
        if word not in left_out:
            yield stem(word)


@cache
def _analysis(language: str) -> tuple[frozenset[str], Callable[[str], str]]:
    """Stop words and stemmer."""
    if language == "none":
        return frozenset(), str
    import snowballstemmer
    from bm25s import stopwords

    stemmer, one_at_a_time = snowballstemmer.stemmer(language), threading.Lock()

    @lru_cache(2**18)
    def stem(word: str) -> str:
        with one_at_a_time:  # it keeps the word in itself
            stemmed: str = stemmer.stemWord(word)
            return stemmed

    return frozenset(getattr(stopwords, f"STOPWORDS_{'EN' if language == 'english' else language.upper()}")), stem


def _passing(found: np.ndarray, ids: np.ndarray, k: int, keep: _Passing) -> np.ndarray:
    """The first k of the positions whose ids pass, asked block by block, ever larger."""
    kept: list[np.ndarray] = []
    start, size = 0, max(k, _KEEP_AT_ONCE)
    while start < len(found) and sum(map(len, kept)) < k:
        some = found[start : start + size]
        kept.append(some[keep(ids[some])])
        start, size = start + size, 2 * size
    return np.concatenate(kept) if kept else found[:0]
