"""Long texts as overlapping windows, none longer than the model reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mmcl.data.processors.text import TextProcessor
from mmcl.data.processors.tokenize import forget_limits, reading_tokenizer, valid_texts
from mmcl.runtime.errors import MmclError

Span = tuple[int, int]
"""A part of a text, from a first to behind a last character."""
_MARGIN = 4  # a cut inside of a word, as in a script without spaces, may tokenize to a little more than the word did


def windows(
    processor: TextProcessor, texts: Sequence[str], prompt: str | None = None, overlap: int | None = None
) -> list[list[Span]]:
    """Where to cut texts so that each window fits into the model behind the prompt; between words where there are any.

    Args:
        processor: of the text tower.
        texts: N of them.
        prompt: as for :meth:`mmcl.data.processors.text.TextProcessor.prompt_text`.
        overlap: tokens that a window shares with the one before it, about; an eighth of a window if absent.

    Returns:
        The windows of each text, at least one; a text that fits has one, all of it.

    Raises:
        MmclError: the prompt leaves no space for a text, or the overlap none for anything new.
    """
    (empty,), _ = processor.tokenize([""], prompt)
    space = processor.max_tokens - len(empty)
    if space < 1:
        raise MmclError(f"windows: the prompt fills the {processor.max_tokens} tokens that the model reads")
    shared = space // 8 if overlap is None else overlap
    if not 0 <= shared <= space // 2:
        raise MmclError(f"windows: overlap is {overlap}; it must be from 0 to {space // 2}, half of a window")
    valid = valid_texts(texts)
    return [_cut(text, offsets, space, shared) for text, offsets in zip(valid, _offsets(processor, valid), strict=True)]


def _cut(text: str, offsets: Sequence[Span], space: int, shared: int) -> list[Span]:
    if len(offsets) <= space:
        return [(0, len(text))]
    space = max(1, space - min(_MARGIN, space // 8))
    spans, start = [], 0
    while True:
        end = min(start + space, len(offsets))
        if end < len(offsets):  # back to the beginning of a word, if that leaves half a window at least
            end = next((at for at in range(end, start + space // 2, -1) if _begins_word(text, offsets, at)), end)
        spans.append((offsets[start][0], max(last for _, last in offsets[start:end])))
        if end == len(offsets):
            return spans
        start = _next_start(text, offsets, start, end, shared)


def _next_start(text: str, offsets: Sequence[Span], start: int, end: int, shared: int) -> int:
    """Where the window behind the one from ``start`` to ``end`` begins: at a word, if there is one not too far back."""
    if not shared:
        return end
    after = max(end - shared, start + 1)
    places = (*range(after, end), *range(after - 1, (start + end) // 2, -1))
    return next((at for at in places if _begins_word(text, offsets, at)), after)


def _begins_word(text: str, offsets: Sequence[Span], at: int) -> bool:
    here = offsets[at][0]  # some tokenizers count the space before a word as its own
    return offsets[at - 1][1] < here or text[here : here + 1].isspace() or text[here - 1 : here].isspace()


def _offsets(processor: TextProcessor, texts: Sequence[str]) -> list[list[Span]]:
    """The characters of each token of each text."""
    tokenizer: Any = processor.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    with reading_tokenizer("the tokenizer's files are damaged"):
        if backend is not None:
            forget_limits(tokenizer)
            return [each.offsets for each in backend.encode_batch(list(texts), add_special_tokens=False)]
        found = []
        for text in texts:  # word by word, whose tokens are then all at one place
            words = [match.span() for match in re.finditer(r"\S+", text)]
            counts = [len(tokenizer(text[slice(*word)], add_special_tokens=False)["input_ids"]) for word in words]
            found.append([word for word, count in zip(words, counts, strict=True) for _ in range(count)])
        return found
