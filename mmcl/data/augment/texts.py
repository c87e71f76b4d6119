"""Random changes of texts, of their tokens or words: what a text means does not hang on any one of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmcl.config.data import TextAugmentationConfig
from mmcl.data.cache.tokens import Tokenize
from mmcl.data.identity import mix, uniforms
from mmcl.runtime.errors import MmclError

WORDS_STREAM, SYNONYMS_STREAM, SPLIT_STREAM = 0x7E87, 0x7E88, 0x7E89  # of a row's random numbers, for its text
_WORD = re.compile(r"\w+(?:['’-]\w+)*")


class TextAugmentation:
    """The random changes of a config: words for their synonyms, then a run of the tokens, then some of these.

    Raises:
        MmclError: the synonyms cannot be read.
    """

    def __init__(self, config: TextAugmentationConfig) -> None:
        self._config = config
        self._stream = 0
        self._synonyms = Synonyms(Path(config.synonyms)) if config.synonyms is not None else None

    def on_stream(self, stream: int) -> TextAugmentation:
        """The same changes, drawn independently of those on other streams: two texts of a row have the same seed."""
        other = copy.copy(self)
        other._stream = stream
        return other

    def __call__(
        self,
        tokens: Sequence[np.ndarray],
        seeds: Tensor,
        framing: tuple[int, int],
        texts: Callable[[], Sequence[str]],
        tokenize: Tokenize,
    ) -> list[np.ndarray]:
        """Change N texts, each by its own seed alone.

        Args:
            tokens: their ids.
            seeds: (N,) int64.
            framing: see :func:`augment_tokens`.
            texts: gives the texts themselves, which are needed for synonyms only.
            tokenize: what made ``tokens`` of them; asked for the texts whose words changed.
        """
        changed = list(tokens)
        seeds = mix(seeds, self._stream) if self._stream else seeds
        if self._synonyms is not None:
            plain = texts()
            swapped = self._synonyms.swap(plain, seeds, self._config.swap)
            places = [place for place, text in enumerate(swapped) if text is not plain[place]]
            if places:
                for place, ids in zip(places, tokenize([swapped[place] for place in places])[0], strict=True):
                    changed[place] = ids
        return augment_tokens(changed, seeds, self._config, framing)


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
    if (config.drop, config.crop) == (0.0, 1.0) or not len(tokens):
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
            kept = draw[3 : 3 + len(words)] >= config.drop
            kept[int(draw[2] * len(words))] |= not kept.any()
            ids = np.concatenate([ids[:start], words[kept], ids[len(ids) - end :]])
        changed.append(ids)
    return changed


class Synonyms:
    """Groups of words that may stand for each other.

    A word is found whatever its case, and its synonym begins with a capital where it does. Of an entry of several
    words any word can become it, but it is found as a single word only.

    Args:
        path: a UTF-8 text file; on each line a group, separated by tabs. A word of several groups has all their words.

    Raises:
        MmclError: there is no such file, or it has no group of two words.
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = path.expanduser().read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise MmclError(f"text_augmentation.synonyms: {path}: cannot be read ({error})") from None
        others: dict[str, dict[str, None]] = {}  # keys of a dict keep the order of the file, which a set would not
        for line in lines:
            group = [word.strip() for word in line.split("\t") if word.strip()]
            for word in group:
                found = others.setdefault(word.casefold(), {})
                found.update(dict.fromkeys(other for other in group if other.casefold() != word.casefold()))
        self._others = {word: list(found) for word, found in others.items() if found}
        if not self._others:
            raise MmclError(
                f"text_augmentation.synonyms: {path}: no line has two words; write the words that may stand for each "
                "other on one line, separated by tabs"
            )

    def swap(self, texts: Sequence[str], seeds: Tensor, probability: float) -> list[str]:
        """Each word that has synonyms becomes one of them with ``probability``.

        What becomes of a text depends on its own seed, one of (N,) int64, alone. A text of which no word is replaced is
        returned as the same object.
        """
        found = [[match for match in _WORD.finditer(text) if match[0].casefold() in self._others] for text in texts]
        draws = uniforms(seeds, 2 * max(map(len, found), default=0), SYNONYMS_STREAM).numpy()
        return [
            self._swapped(text, words, draw.reshape(-1, 2), probability)
            for text, words, draw in zip(texts, found, draws, strict=True)
        ]

    def _swapped(self, text: str, words: Sequence[re.Match[str]], draws: np.ndarray, probability: float) -> str:
        parts, end = [], 0
        for word, (whether, which) in zip(words, draws, strict=False):
            if whether < probability:
                others = self._others[word[0].casefold()]
                other = others[int(which * len(others))]
                parts += [text[end : word.start()], other[:1].upper() + other[1:] if word[0][0].isupper() else other]
                end = word.end()
        return "".join([*parts, text[end:]]) if parts else text


def split_tokens(inputs: Mapping[str, Tensor], seeds: Tensor, part: int, special: Tensor) -> dict[str, Tensor]:
    """One of two halves of each text's tokens: every token is drawn for one of the two, and keeps its order.

    Both halves have the special tokens and what the pooling skips. A text of one other token is in both. Which tokens
    a half has depends on the text's own seed alone.

    Args:
        inputs: of N texts, see :mod:`mmcl.data.batches.inputs`.
        seeds: (N,) int64, one a text.
        part: 0 or 1, which half.
        special: ids of the special tokens.
    """
    ids = inputs["input_ids"]
    there = inputs["attention_mask"].bool() if "attention_mask" in inputs else torch.ones_like(ids, dtype=torch.bool)
    ordinary = there & ~torch.isin(ids, special)
    if "skipped" in inputs:
        ordinary &= torch.arange(ids.shape[1], device=ids.device) >= inputs["skipped"][:, None]
    chance = uniforms(seeds, ids.shape[1], SPLIT_STREAM).masked_fill(~ordinary, torch.inf)
    rank = chance.argsort(dim=1, stable=True).argsort(dim=1)
    count = ordinary.sum(dim=1, keepdim=True)
    other = (rank < count // 2) if part else (rank >= count // 2)  # the tokens of the other half
    kept = there & ~(other & ordinary & (count > 1))
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(kept.sum(dim=1).max())]
    return {**inputs, "input_ids": ids.gather(1, order), "attention_mask": kept.gather(1, order).long()}


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
