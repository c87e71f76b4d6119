"""Errors that a user can mend: the command line prints their message, one line, and exits with their code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

LONGEST_NAME = 200
"""Characters of a name that are compared with known names."""


SYNONYMS = {
    "learning_rate": "lr",
    "gradient_accumulation_steps": "accumulate",
    "max_grad_norm": "clip_grad",
    "tau": "temperature",
}
"""What other libraries call a setting, where the letters do not lead to our name."""


class MmclError(Exception):
    """A mistake of the user's, or a state of their machine: one line with what, where and how to mend it."""

    exit_code = 2

    def __init__(self, message: object) -> None:
        # The reasons that libraries give may run over several lines.
        super().__init__(" ".join(line.strip() for line in str(message).splitlines()))


class DivergedError(MmclError):
    """The loss is no finite number any more. Exit code 1, since the command line was correct."""

    exit_code = 1


class NotFiniteError(ArithmeticError):
    """Something that a run computes is no finite number. All processes raise it together.

    Attributes:
        what: ``loss``, ``gradient``, ``weights`` or ``vectors``.
        batch: this process's share of the batch in which it came about; None outside of a step.
    """

    def __init__(self, message: str, what: str, batch: Any = None) -> None:
        super().__init__(message)
        self.what, self.batch = what, batch


def first_line(error: BaseException) -> str:
    """The first line of an error's message, shortened, or its type. Advice to run a file's code is replaced."""
    text = str(error).strip()
    if "custom code" in text and ("trust_remote_code" in text or "must be executed" in text):
        return "it comes with Python code of its own, which is never run: take one that transformers itself knows"
    if "weights_only" in text or "Weights only load failed" in text:
        return (
            "its weights hold code or Python objects, which are never run: save its state dict as a .safetensors file"
        )
    line = text.splitlines()[0] if text else ""
    if isinstance(error, (KeyError, IndexError)) or not line:  # whose text says little alone
        line = f"{type(error).__name__} {line}".strip()
    return line if len(line) <= 300 else f"{line[:300]} …"


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean 'NAME'?`` with the closest known name, or a list of the known names; "" if there are none."""
    options = sorted(known)
    if (synonym := SYNONYMS.get(name.lower())) in options:
        return f"did you mean '{synonym}'?"
    name = name[:LONGEST_NAME]  # the comparison takes time by its square
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(options)}" if options else ""
