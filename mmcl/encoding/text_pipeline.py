"""Texts to embeddings: tokenized ahead on another thread, batched by their number of tokens, put back in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from mmcl.encoding.inputs import modality_of
from mmcl.encoding.text_compute import TextCompute

CHUNK = 4096
"""Texts tokenized and sorted together."""

Source = TypeVar("Source")
Made = TypeVar("Made")


class Embedded(NamedTuple):
    """Some consecutive inputs: ``vectors`` (n, D); ``cut`` (n,) bool, which texts were longer than the model reads; and
    ``errors``, why some images could not be read, by their position."""

    vectors: np.ndarray
    cut: np.ndarray
    errors: dict[int, str] | None = None


@torch.inference_mode()
def _embed(
    compute: TextCompute,
    tokens: Sequence[np.ndarray],
    skipped: int,
    texts_a_batch: int | None,
    finish: Callable[[Tensor], np.ndarray],
    advance: Callable[[int], object],
) -> np.ndarray:
    places: dict[bytes, int] = {}  # of equal tokens, computed once: such texts have one vector, to the bit
    of = np.array([places.setdefault(ids.tobytes(), len(places)) for ids in tokens])
    first = np.unique(of, return_index=True)[1]
    repeats = np.bincount(of)
    tokens = [tokens[place] for place in first]
    lengths = np.array([len(ids) for ids in tokens])
    vectors: np.ndarray | None = None
    for batch in compute.batches(lengths, texts_a_batch):
        some = finish(compute([tokens[place] for place in batch], skipped))
        if vectors is None:
            vectors = np.empty((len(tokens), some.shape[1]), some.dtype)
        vectors[batch] = some
        advance(int(repeats[batch].sum()))
    assert vectors is not None  # a chunk holds a text
    return vectors[of]


def embed_chunks(
    compute: TextCompute,
    chunks: Iterable[Sequence[str]],
    prompt: str | None,
    *,
    texts_a_batch: int | None,
    finish: Callable[[Tensor], np.ndarray],
    advance: Callable[[int], object] = lambda count: None,
) -> Iterator[Embedded]:
    """Embed chunk after chunk, each tokenized while the one before it is being computed.

    Args:
        compute: embeds tokens.
        chunks: texts, at least one each.
        prompt: as for :meth:`mmcl.data.processors.text.TextProcessor.prompt_text`.
        texts_a_batch: texts a forward pass; filled up to a number of tokens if absent.
        finish: truncates and normalises (n, D) embeddings.
        advance: called with the number of texts done since.

    Raises:
        MmclError: no such prompt, or something that is no text; the chunks before it are given out first.
    """
    skipped = compute.processor.skipped(prompt)

    def tokenize(chunk: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray]:
        return compute.processor.tokenize_marked(chunk, prompt)

    for tokens, cut in made_ahead(chunks, tokenize):
        yield Embedded(_embed(compute, tokens, skipped, texts_a_batch, finish, advance), cut)


def made_ahead(source: Iterable[Source], make: Callable[[Source], Made]) -> Iterator[Made]:
    """``make`` of each item, run on another thread for the next one while the caller works on this one.

    The source itself is read on the caller's thread, one item ahead. What it or ``make`` raises comes when its turn
    does, after everything before it.
    """
    items: Iterator[Source] = iter(source)
    with ThreadPoolExecutor(1) as background:
        for first in islice(items, 1):
            made = make(first)  # there is nothing yet to do meanwhile
            while True:
                failure: Exception | None = None
                coming: Any = None
                try:
                    for item in islice(items, 1):
                        coming = background.submit(make, item)
                except Exception as error:
                    failure = error
                yield made
                if failure is not None:
                    raise failure
                if coming is None:
                    return
                made = coming.result()


def only_texts(items: Iterable[Any]) -> Iterator[str]:
    """The items, up to the first that is no text.

    Raises:
        MmclError: one is none; it is named by its place among all.
    """
    for place, item in enumerate(items):
        modality_of(item, place, "text")
        yield item


def chunked(items: Iterable[Source], size: int) -> Iterator[list[Source]]:
    """Consecutive lists of up to ``size`` items."""
    items = iter(items)
    while chunk := list(islice(items, size)):
        yield chunk
