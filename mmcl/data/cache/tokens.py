"""Texts of a column, tokenized once into a memory map."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmcl.data.identity import stable_hash
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import atomic_folder, cache_dir
from mmcl.runtime.progress import progress

if TYPE_CHECKING:  # to read tokens takes no tables, and the library for them half a second
    from mmcl.data.rows import Rows

_BLOCK = 10_000
_VERSION = 3  # of what is kept

Tokenize = Callable[[Sequence[str]], tuple[list[np.ndarray], int]]
"""From texts to the token ids of each, and how many were cut short."""

Identify = Callable[[Sequence[str], Sequence[np.ndarray]], np.ndarray]
"""From texts and their token ids to (N,) int64, equal for texts that are the same to the model."""


class Tokens:
    """The token ids of every caption of every row; nothing but the rows asked for is in memory.

    A row may have any number of captions, and those without text have none: they are what ``empty`` lists. Captions
    are numbered through the whole column: row i has those from ``first[i]`` up to ``first[i + 1]``.

    Attributes:
        first: (rows + 1,) int64.
        hashes: (captions,) int64, equal for texts that are the same to the model, whatever the prompt.
        contents: (captions,) int64, equal for equal token ids.
        empty: positions of rows without a text.
        cut: how many captions were cut short.
    """

    def __init__(self, folder: Path) -> None:
        self.first = np.load(folder / "first.npy", mmap_mode="r")
        self.hashes = np.load(folder / "hashes.npy", mmap_mode="r")
        self.contents = np.load(folder / "contents.npy", mmap_mode="r")
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        size = (folder / "tokens.bin").stat().st_size
        # A file of no bytes cannot be mapped. A plain view, since slices of the subclass that a memmap is cost more.
        mapped = np.memmap(folder / "tokens.bin", dtype=np.int32, mode="r") if size else np.zeros(0, np.int32)
        self._tokens = mapped.view(np.ndarray)
        self.empty: list[int] = np.flatnonzero(np.diff(self.first) == 0).tolist()
        self.cut = int(np.load(folder / "cut.npy"))

    def __len__(self) -> int:
        return len(self.first) - 1

    @property
    def longest(self) -> int:
        """Tokens of the longest caption; 0 where there is none."""
        return int(np.diff(self._offsets).max(initial=0))

    def take(self, captions: np.ndarray) -> list[np.ndarray]:
        """The token ids, int32, of the captions with these numbers."""
        starts, ends = self._offsets[captions].tolist(), self._offsets[captions + 1].tolist()
        return [self._tokens[start:end] for start, end in zip(starts, ends, strict=True)]

    def row_of(self, captions: np.ndarray) -> np.ndarray:
        """The rows that the captions with these numbers stand in, and which of a row's captions each is: (2, N)."""
        rows = np.searchsorted(self.first, captions, side="right") - 1
        return np.stack([rows, captions - self.first[rows]])


def open_tokens(
    rows: Rows,
    column: str | None,
    tokenize: Tokenize,
    *,
    tokenizer_key: str,
    identify: Identify | None = None,
    on_error: str = "skip",
    show_progress: bool | None = None,
) -> Tokens:
    """Tokenize a column of texts, or of lists of texts, or find it in the cache.

    Args:
        rows: where the column is.
        column: its name; None: no row has a text.
        tokenize: from texts to the token ids of each, and how many were cut short.
        tokenizer_key: changes whenever ``tokenize`` or ``identify`` would give something else.
        identify: which texts are the same; by default those of equal token ids.
        on_error: a row whose text is missing or blank is left without captions (``skip``) or refused (``fail``).
        show_progress: a bar on stderr; shown for a terminal if absent.

    Raises:
        MmclError: there is no such column, or a row has no text and ``on_error`` is ``fail``.
    """
    rows.require([column] if column is not None else [])
    content = repr((_VERSION, rows.fingerprint, column, tokenizer_key))
    key = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
    folder = cache_dir("tokens") / key
    if not (folder / "first.npy").is_file():
        with atomic_folder(folder, unless=folder / "first.npy") as beside:
            _write(rows, column, tokenize, identify, beside, show_progress)
    tokens = Tokens(folder)
    if on_error == "fail" and tokens.empty:
        row = rows.select([tokens.empty[0]]).ids()[0]
        raise MmclError(
            f"{rows.name}: row {row} has no text in column '{column}' ({len(tokens.empty)} rows in all); "
            "fill it, or set data.on_error to skip"
        )
    return tokens


def _write(
    rows: Rows,
    column: str | None,
    tokenize: Tokenize,
    identify: Identify | None,
    folder: Path,
    show_progress: bool | None,
) -> None:
    counts, hashes, contents, lengths = array("q"), array("q"), array("q"), array("q")
    cut = 0
    with (folder / "tokens.bin").open("wb") as file, progress("tokenize", len(rows), "rows", show_progress) as advance:
        for start in range(0, len(rows), _BLOCK):
            block = rows.select(range(start, min(start + _BLOCK, len(rows))))
            cells = [None] * len(block) if column is None else block.texts(column)
            captions = [texts_of(value) for value in cells]
            flat = [text for texts in captions for text in texts]
            tokenized, longer = tokenize(flat)
            cut += longer
            for ids in tokenized:
                lengths.append(len(ids))
                content = ids.astype(np.int32).tobytes()
                contents.append(stable_hash(content))
                file.write(content)
            counts.extend(map(len, captions))
            hashes.extend(contents[len(hashes) :] if identify is None else identify(flat, tokenized).tolist())
            advance(len(block))
    np.save(folder / "cut.npy", cut)
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))
    np.save(folder / "contents.npy", np.frombuffer(contents, dtype=np.int64))
    np.save(folder / "hashes.npy", np.frombuffer(hashes, dtype=np.int64))
    np.save(folder / "first.npy", np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))


def texts_of(value: str | list[str] | None) -> list[str]:
    """The captions of a cell: a text, a list of them, or nothing. Blank ones are none."""
    texts = [value] if isinstance(value, str) else value or []
    return [text for text in texts if text.strip()]


def pad(tokens: Sequence[np.ndarray], padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of N texts as one array, padded to the longest of L tokens, at least 1.

    Returns:
        The ids, and 1 where they are tokens and 0 where they are padding; both int64 (N, L).
    """
    lengths = np.fromiter(map(len, tokens), dtype=np.int64, count=len(tokens))
    ids = np.full((len(tokens), max(1, lengths.max(initial=0))), padding, dtype=np.int64)
    real = np.arange(ids.shape[1]) < lengths[:, None]
    if lengths.any():
        ids[real] = np.concatenate(tokens)  # row by row, as the texts stand
    return ids, real.astype(np.int64)
