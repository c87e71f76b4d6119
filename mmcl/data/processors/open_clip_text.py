"""Texts to the token ids that a text tower of open_clip reads, by open_clip's own tokenizers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmcl.data.identity import stable_hash
from mmcl.data.processors.text import TextProcessor
from mmcl.data.processors.tokenize import forget_limits
from mmcl.runtime.quiet import quiet


class OpenClipTextProcessor(TextProcessor):
    """Texts to token ids by a tokenizer object of open_clip.

    Args:
        tokenize: open_clip's tokenizer object.
        settings: ``text_cfg`` of the model.
        max_tokens: longer texts are cut here, special tokens included.
        prompts: name to the words put before a text.
        default_prompt: name of the prompt of texts for which none is named.

    Attributes:
        tokenizer: the tokenizer of transformers within ``tokenize``, where there is one; else ``tokenize`` itself.
    """

    def __init__(
        self,
        tokenize: Any,
        settings: Mapping[str, Any],
        *,
        max_tokens: int,
        prompts: dict[str, str] | None = None,
        default_prompt: str | None = None,
    ) -> None:
        self._tokenize, self._settings = tokenize, settings
        super().__init__(
            getattr(tokenize, "tokenizer", tokenize),
            max_tokens=max_tokens,
            prompts=prompts,
            default_prompt=default_prompt,
        )

    @property
    def padding_id(self) -> int:
        return 0 if self.tokenizer is self._tokenize else int(self.tokenizer.pad_token_id or 0)

    def tokenizer_key(self) -> str:
        """Changes whenever the tokenizer would give something else, whatever stands before a text or is cut off."""
        if self.tokenizer is not self._tokenize:
            return super().tokenizer_key()
        return f"{stable_hash(json.dumps(self.tokenizer.encoder, sort_keys=True)):x}"  # open_clip's own: no get_vocab

    def key(self) -> str:
        """Changes whenever :meth:`tokenize` would give something else."""
        forget_limits(self.tokenizer)
        wanted = [self._settings.get(name) for name in ("tokenizer_kwargs", "tokenizer_mode", "context_length")]
        inner = super().key() if self.tokenizer is not self._tokenize else f"open_clip-{self.max_tokens}"
        return f"{stable_hash(json.dumps(wanted, sort_keys=True)):x}-{inner}"

    def _encode(self, texts: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray]:
        """open_clip's tokenizers pad to a length: the padding is taken off again, and put back by ``collate``."""
        rows = self._unpadded(texts, self.max_tokens) if texts else []
        cut = np.array([len(row) == self.max_tokens for row in rows], dtype=bool)
        if cut.any():
            longer = self._unpadded([texts[position] for position in np.flatnonzero(cut).tolist()], self.max_tokens + 1)
            cut[cut] = [len(row) > self.max_tokens for row in longer]
        return rows, cut

    def _unpadded(self, texts: Sequence[str], length: int) -> list[np.ndarray]:
        with quiet():
            ids = self._tokenize(list(texts), context_length=length).numpy().astype(np.int32)
        # Some tokenizers pad with the end token: the first of these is the text's own.
        own = int(self.padding_id == getattr(self.tokenizer, "eos_token_id", None))
        read = ids != self.padding_id
        ends = np.where(read.any(axis=1), length - read[:, ::-1].argmax(axis=1), 0)
        starts = read.argmax(axis=1)  # behind what is padded on the left
        return [row[start : max(1, end + own)] for row, start, end in zip(ids, starts, ends, strict=True)]
