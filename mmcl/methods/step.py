"""Where training stands, and schedules over it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """An optimizer step.

    Attributes:
        number: from 0.
        total: steps of the run.

    >>> Step(50, 101).cosine(0.996, 1.0)
    0.998
    """

    number: int
    total: int

    @property
    def progress(self) -> float:
        """From 0 at the first step to 1 at the last."""
        return self.number / max(1, self.total - 1)

    def cosine(self, start: float, end: float) -> float:
        """From ``start`` at the first step to ``end`` at the last, along half a cosine."""
        return end - (end - start) * (1 + math.cos(math.pi * self.progress)) / 2

    def linear(self, start: float, end: float) -> float:
        """From ``start`` at the first step to ``end`` at the last, along a line."""
        return start + (end - start) * self.progress
