"""Schedules: values as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

Schedule: TypeAlias = Callable[[int, int, float, float], float]
"""The value at step ``step`` (from 0) of ``steps``, on its way from ``start`` to ``end``."""


def cosine(step: int, steps: int, start: float, end: float) -> float:
    """Half a cosine from ``start`` to ``end`` (Loshchilov & Hutter 2017, arXiv:1608.03983)."""
    return end + (start - end) * (1 + math.cos(math.pi * (step / max(1, steps)))) / 2


def linear(step: int, steps: int, start: float, end: float) -> float:
    """A straight line from ``start`` to ``end``."""
    return end + (start - end) * (1 - step / max(1, steps))


def constant(step: int, steps: int, start: float, end: float) -> float:
    """``start`` at every step."""
    return start


SCHEDULES: Mapping[str, Schedule] = {"cosine": cosine, "linear": linear, "constant": constant}
