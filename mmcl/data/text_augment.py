"""Random changes of captions, as runs of tokens: what a picture shows does not hang on any one word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from mmcl.config.data import TextAugmentationConfig
from mmcl.data.identity import uniforms
from mmcl.data.tokens import Tokenize

WORDS_STREAM = 0x7E87  # of a row's random numbers, those that change its caption


def augment_tokens(
    tokens: Sequence[np.ndarray], seeds: Tensor, config: TextAugmentationConfig, framing: tuple[int, int]
) -> list[np.ndarray]:
    """Cut each text to a random run of its tokens, and of these leave some out.

    Every text keeps the special tokens at its ends and at least one other. What becomes of it depends on its own seed
    alone, not on the texts beside it.

    Args:
        tokens: ids of N texts.
        seeds: (N,) int64, one a text.
        config: how much to change.
        framing: how many special tokens stand at the start and at the end of every text, as from :func:`framing_of`.
    """
    if config == TextAugmentationConfig() or not len(tokens):
        return list(tokens)
    start, end = framing
    longest = max(map(len, tokens))
    # The first three numbers choose the length, the place and the token that stays whatever happens.
    draws = uniforms(seeds, 3 + longest, WORDS_STREAM).numpy()
    changed = []
    for ids, draw in zip(tokens, draws, strict=True):
        words = ids[start : len(ids) - end]
        if len(words) > 1:
            words = _cut(words, draw[0], draw[1], config.crop)
            stays = draw[3 : 3 + len(words)] >= config.drop
            stays[int(draw[2] * len(words))] |= not stays.any()
            ids = np.concatenate([ids[:start], words[stays], ids[len(ids) - end :]])
        changed.append(ids)
    return changed


def framing_of(tokenize: Tokenize) -> tuple[int, int]:
    """How many special tokens a tokenizer puts before and after a text.

    An empty text has nothing but them, and a word stands where they part.
    """
    (empty, word), _ = tokenize(["", "a"])
    start = 0
    while start < len(empty) and start < len(word) and empty[start] == word[start]:
        start += 1
    end = len(empty) - start
    framed = len(word) > len(empty) and np.array_equal(word[len(word) - end :], empty[start:])
    return (start, end) if framed else (0, 0)


def _cut(words: np.ndarray, share: float, place: float, smallest: float) -> np.ndarray:
    """A run of the words: its length is a share drawn from [``smallest``, 1], its place any that there is."""
    keep = max(1, round(len(words) * (smallest + float(share) * (1 - smallest))))
    first = int(place * (len(words) - keep + 1))
    return words[first : first + keep]
