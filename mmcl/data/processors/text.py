"""Texts to the token ids that a text tower reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcl.data.augment.texts import framing_of
from mmcl.data.cache.tokens import pad
from mmcl.data.identity import stable_hash
from mmcl.data.processors import tokenize
from mmcl.runtime.errors import MmclError, nearest


class TextProcessor:
    """Texts to token ids, behind a prompt where the model has one.

    Args:
        tokenizer: of transformers.
        max_tokens: longer texts are cut here, special tokens included.
        prompts: name to the words put before a text.
        default_prompt: name of the prompt of texts for which none is named.
        include_prompt: whether the prompt's tokens enter the pooling.
        lowercase: whether texts are lower-cased before they are tokenized.
        padding_id: the id that texts are filled up with, and that one without any token reads as; the tokenizer's own
            if absent.
        ignored_id: a token that is left out of all texts, such as the one of unknown words.

    Attributes:
        tokenizer: as given, as are the others.

    Raises:
        MmclError: ``max_tokens`` leaves nothing of a text beside the special tokens, or the default prompt is none of
            the prompts.
        ValueError: ``max_tokens`` is no number from 1 up, or a prompt is no text.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_tokens: int,
        prompts: dict[str, str] | None = None,
        default_prompt: str | None = None,
        include_prompt: bool = True,
        lowercase: bool = False,
        padding_id: int | None = None,
        ignored_id: int | None = None,
    ) -> None:
        if type(max_tokens) is not int or max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens!r:.60}, and no number from 1 up")
        special = tokenizer.num_special_tokens_to_add() if hasattr(tokenizer, "num_special_tokens_to_add") else 0
        if max_tokens <= special:  # all texts would be one
            raise MmclError(
                f"texts are cut at {max_tokens} tokens, of which {special} are special: nothing of them is left; set a "
                "larger max_tokens, or max_seq_length or model_max_length of the model's settings"
            )
        self.tokenizer = tokenizer
        tokenize.forget_limits(tokenizer)
        self.lowercase = lowercase
        self._lowers_first = lowercase and not tokenize.fold_case(tokenizer)
        self.max_tokens = max_tokens
        self.prompts: dict[str, str] = {}
        self.set_prompts(prompts or {}, default_prompt)
        self.include_prompt = include_prompt
        self._padding_id, self.ignored_id = padding_id, ignored_id

    @property
    def padding_id(self) -> int:
        """The token that texts are filled up with."""
        return int(self.tokenizer.pad_token_id or 0) if self._padding_id is None else self._padding_id

    @property
    def pads_left(self) -> bool:
        """Whether the tokenizer fills texts up before their first token."""
        return tokenize.pads_left(self.tokenizer)

    @property
    def folds_case(self) -> bool:
        """Whether the tokenizer itself lower-cases, rather than the processor before it."""
        return self.lowercase and not self._lowers_first

    def set_prompts(self, prompts: dict[str, str], default: str | None = None) -> None:
        """Have other prompts from now on.

        Args:
            prompts: name to the words put before a text.
            default: name of the prompt of texts for which none is named.

        Raises:
            MmclError: the default is none of them.
            ValueError: one is no text.
        """
        if not isinstance(prompts, dict) or not all(isinstance(words, str) for words in prompts.values()):
            raise ValueError("prompts are no texts by name")
        if default is not None and default not in prompts:
            raise MmclError(f"the default prompt '{default}' is none of the prompts; {nearest(default, prompts)}")
        self.prompts, self.default_prompt = dict(prompts), default

    def replace_prompts(self, prompts: dict[str, str]) -> None:
        """Have other prompts; the default one stays the default if they have its name."""
        self.set_prompts(prompts, self.default_prompt if self.default_prompt in prompts else None)

    def tokenizer_key(self) -> str:
        """Changes whenever the tokenizer would give something else, whatever stands before a text or is cut off."""
        return tokenize.content_key(self.tokenizer)

    def key(self) -> str:
        """Changes whenever :meth:`tokenize` would give something else for a text without a prompt."""
        parts = [self.tokenizer_key(), str(self.max_tokens)]
        parts += ["lower"] if self._lowers_first else []
        parts += [f"without {self.ignored_id}"] if self.ignored_id is not None else []
        parts += [f"{stable_hash(text):x}"] if (text := self.prompt_text()) else []
        return "-".join(parts)

    def prompt_text(self, prompt: str | None = None) -> str:
        """The text that is put before every other.

        Args:
            prompt: name of one of the model's prompts; the default one, if there is one, if absent; "" for none.

        Raises:
            MmclError: the model has no prompt of that name.
        """
        name = self.default_prompt if prompt is None else prompt
        if not name:
            return ""
        if name not in self.prompts:
            known = ", ".join(sorted(self.prompts)) or "no prompts at all"
            raise MmclError(f"prompt '{name}': the model has no prompt of that name; it has: {known}")
        return self.prompts[name]

    def tokenize(self, texts: Sequence[str], prompt: str | None = None) -> tuple[list[np.ndarray], int]:
        """Token ids of each text, int32, cut at ``max_tokens``; and how many texts were cut.

        Args:
            texts: of any content; one without any token reads as padding.
            prompt: as for :meth:`prompt_text`.

        Raises:
            MmclError: ``prompt`` is not the name of one of the model's prompts, or something is no text.
        """
        ids, cut = self.tokenize_marked(texts, prompt)
        return ids, int(cut.sum())

    def tokenize_marked(self, texts: Sequence[str], prompt: str | None = None) -> tuple[list[np.ndarray], np.ndarray]:
        """As :meth:`tokenize`, but with (N,) bool: which of the texts were cut."""
        valid = tokenize.valid_texts(texts, self.prompt_text(prompt))
        ids, cut = self._encode([text.lower() for text in valid] if self._lowers_first else valid)
        return [row if len(row) else np.array([self.padding_id], dtype=np.int32) for row in ids], cut

    def identities(
        self, texts: Sequence[str], prompt: str | None = None, tokens: Sequence[np.ndarray] | None = None
    ) -> np.ndarray:
        """(N,) int64, equal for texts that the tower cannot tell apart: their own tokens are the same, as far as they
        are read behind the prompt. The prompt itself does not count, so that a query can equal a passage.

        Args:
            texts: N of them.
            prompt: as for :meth:`prompt_text`.
            tokens: what :meth:`tokenize` gave for the same texts and prompt, if it was asked already.

        Raises:
            MmclError: as :meth:`tokenize`.
        """
        before = self.prompt_text(prompt)
        if before or tokens is None:
            tokens, _ = self.tokenize(texts, "")
        start, end = framing_of(lambda some: self.tokenize(some, ""))
        length = self.max_tokens - start - end
        if before and getattr(self.tokenizer, "truncation_side", "right") == "right":
            (prompt_tokens,), _ = self.tokenize([before], "")
            length -= len(prompt_tokens) - start - end
        own = (ids[start : len(ids) - end][: max(length, 0)] for ids in tokens)
        return np.fromiter((stable_hash(ids.astype(np.int32).tobytes()) for ids in own), np.int64, count=len(texts))

    def skipped(self, prompt: str | None = None) -> int:
        """How many leading tokens the pooling is to leave out of texts behind ``prompt``.

        They are the prompt's and the special ones before it; 0 for a model that pools these as well.
        """
        if self.include_prompt or not (text := self.prompt_text(prompt)):
            return 0
        (ids,), _ = self.tokenize([text], prompt="")
        return len(ids) - int(ids[-1] in self.tokenizer.all_special_ids)

    def collate(self, tokens: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Pad to the longest: ``input_ids`` and ``attention_mask``, both int64 (N, L)."""
        ids, mask = pad(tokens, self.padding_id)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

    def _encode(self, texts: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray]:
        ids, cut = tokenize.token_ids(self.tokenizer, texts, self.max_tokens)
        return (ids if self.ignored_id is None else [row[row != self.ignored_id] for row in ids]), cut
