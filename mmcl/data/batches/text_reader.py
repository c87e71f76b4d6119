"""How a text tower reads a role: which prompt stands before its texts, and what becomes of them on the way."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from mmcl.data.augment.texts import framing_of
from mmcl.data.batches.towers import TextTower
from mmcl.runtime.errors import MmclError, nearest


class TextReader:
    """Texts as inputs of ``tower``, behind one of its prompts.

    Args:
        tower: what the texts go through.
        prompt: name of the prompt; the tower's default one, if it has any, where None; no prompt where empty.
        setting: what named it, for messages.

    Attributes:
        words: the prompt itself.

    Raises:
        MmclError: the tower has no such prompt.
    """

    def __init__(self, tower: TextTower, prompt: str | None = None, setting: str = "data.prompts") -> None:
        if prompt and prompt not in tower.prompts:
            hint = nearest(prompt, tower.prompts) if tower.prompts else "it has none; see model.text.prompts"
            raise MmclError(f"{setting}: the model has no prompt '{prompt}'; {hint}")
        self.tower = tower
        self.prompt = prompt
        self.words = tower.prompt_text(prompt)

    @property
    def key(self) -> str:
        """Changes whenever :meth:`tokenize` would give something else."""
        return repr((self.tower.key(), self.words)) if self.words else self.tower.key()

    def identities(self, texts: Sequence[str], tokens: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """(N,) int64, equal for texts that the tower cannot tell apart; ``tokens`` are those of :meth:`tokenize`."""
        return self.tower.identities(texts, self.prompt, tokens)

    def tokenize(self, texts: Sequence[str]) -> tuple[list[np.ndarray], int]:
        """The token ids of each text behind the prompt, and how many texts were cut."""
        return self.tower.tokenize(texts, self.prompt)

    @cached_property
    def framing(self) -> tuple[int, int]:
        """How many tokens stand before and after the text's own: special ones, and the prompt's."""
        start, end = framing_of(lambda texts: self.tower.tokenize(texts, ""))
        (bare,), _ = self.tower.tokenize(["a"], "")
        (prompted,), _ = self.tokenize(["a"])
        return start + len(prompted) - len(bare), end

    @cached_property
    def skipped(self) -> int:
        """How many of a text's first tokens do not enter the pooling."""
        return self.tower.skipped(self.prompt)
