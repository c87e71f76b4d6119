"""Texts to the words of a vocabulary, as sentence-transformers' ``WhitespaceTokenizer`` splits them."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmcl.runtime.files import read_json, write_json

WORDS = "whitespacetokenizer_config.json"
"""The file of such a tokenizer in a folder."""


class WordTokenizer:
    """Splits at white space. A word counts as it stands, else without punctuation around it, else in lower case; one
    that is a stop word, or that the vocabulary has in none of these forms, is left out.

    It can be asked as the tokenizers of transformers are, and has no special tokens.

    Args:
        vocab: the words by their ids, without repetition.
        stop_words: that are left out.
        do_lower_case: whether texts are lower-cased first.
    """

    pad_token_id: int | None = None
    padding_side = truncation_side = "right"
    name_or_path = ""
    model_max_length = None

    def __init__(self, vocab: Sequence[str], stop_words: Sequence[str] = (), do_lower_case: bool = False) -> None:
        self.vocab, self.stop_words, self.do_lower_case = list(vocab), frozenset(stop_words), do_lower_case
        self.all_special_ids: list[int] = []
        self._ids = {word: number for number, word in enumerate(self.vocab)}

    @classmethod
    def read(cls, folder: Path) -> WordTokenizer:
        """The one that :meth:`save_pretrained`, or that library, wrote into ``folder``."""
        return cls(**read_json(folder / WORDS))

    def save_pretrained(self, folder: Path) -> None:
        """Write its file into ``folder``."""
        write_json(folder / WORDS, self.settings())

    def settings(self) -> dict[str, Any]:
        """The arguments that make it again."""
        return {"vocab": self.vocab, "stop_words": sorted(self.stop_words), "do_lower_case": self.do_lower_case}

    def __len__(self) -> int:
        return len(self.vocab)

    def __call__(self, texts: str | Sequence[str], max_length: int | None = None, **_: Any) -> dict[str, Any]:
        """``input_ids`` of a text, or of each of several, cut at ``max_length``."""
        if isinstance(texts, str):
            return {"input_ids": self._split(texts)[:max_length]}
        return {"input_ids": [self._split(text)[:max_length] for text in texts]}

    def get_vocab(self) -> dict[str, int]:
        """Word to id."""
        return dict(self._ids)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """The words of these ids."""
        return [self.vocab[number] for number in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The words of these ids, in one text."""
        return " ".join(self.convert_ids_to_tokens(ids))

    def _split(self, text: str) -> list[int]:
        words = (text.lower() if self.do_lower_case else text).split()
        return [found for word in words if (found := self._find(word)) is not None]

    def _find(self, word: str) -> int | None:
        bare = word.strip(string.punctuation)
        for form in (word, bare, bare.lower()):
            if form in self.stop_words:
                return None
            if form in self._ids:
                return self._ids[form]
        return None
