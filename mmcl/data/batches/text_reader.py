"""How a model reads a role of texts: which prompt stands before its texts, and what becomes of them on the way."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from mmcl.data.augment.texts import framing_of
from mmcl.data.processors.text import TextProcessor
from mmcl.runtime.errors import MmclError, nearest


class TextReader:
    """Texts to tokens by ``processor``, behind one of its prompts.

    Args:
        processor: of the texts.
        prompt: name of the prompt; the processor's default one, if it has any, where None; no prompt where empty.
        setting: what named it, for messages.

    Attributes:
        words: the prompt itself.

    Raises:
        MmclError: there is no such prompt.
    """

    def __init__(self, processor: TextProcessor, prompt: str | None = None, setting: str = "data.prompts") -> None:
        if prompt and prompt not in processor.prompts:
            hint = nearest(prompt, processor.prompts) if processor.prompts else "it has none; see prompts of its tower"
            raise MmclError(f"{setting}: the model has no prompt '{prompt}'; {hint}")
        self.processor = processor
        self.prompt = prompt
        self.words = processor.prompt_text(prompt)

    @property
    def key(self) -> str:
        """Changes whenever :meth:`tokenize` would give something else."""
        return repr((self.processor.key(), self.words)) if self.words else self.processor.key()

    def identities(self, texts: Sequence[str], tokens: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """(N,) int64, equal for texts that the tower cannot tell apart; ``tokens`` are those of :meth:`tokenize`."""
        return self.processor.identities(texts, self.prompt, tokens)

    def tokenize(self, texts: Sequence[str]) -> tuple[list[np.ndarray], int]:
        """The token ids of each text behind the prompt, and how many texts were cut."""
        return self.processor.tokenize(texts, self.prompt)

    @cached_property
    def framing(self) -> tuple[int, int]:
        """How many tokens stand before and after the text's own: special ones, and the prompt's."""
        start, end = framing_of(lambda texts: self.processor.tokenize(texts, ""))
        (bare,), _ = self.processor.tokenize(["a"], "")
        (prompted,), _ = self.tokenize(["a"])
        return start + len(prompted) - len(bare), end

    @cached_property
    def skipped(self) -> int:
        """How many of a text's first tokens do not enter the pooling."""
        return self.processor.skipped(self.prompt)
