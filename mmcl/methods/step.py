"""Where training stands, and schedules over it."""

from __future__ import annotations

from dataclasses import dataclass

from mmcl.runtime import schedules


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

    def cosine(self, start: float, end: float) -> float:
        """From ``start`` at the first step to ``end`` at the last, along half a cosine."""
        return schedules.cosine(self.number, self.total - 1, start, end)

    def ramp(self, start: float, end: float, share: float) -> float:
        """From ``start`` at the first step to ``end`` along a line, where it stays after this share of the run."""
        steps = share * (self.total - 1)
        return start + (end - start) * min(1.0, self.number / steps) if steps else end

    def linear(self, start: float, end: float) -> float:
        """From ``start`` at the first step to ``end`` at the last, along a line."""
        return schedules.linear(self.number, self.total - 1, start, end)
