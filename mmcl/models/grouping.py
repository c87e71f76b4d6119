"""Texts in groups of similar length, so that little of what passes through a tower is padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise


def group_by_length(lengths: Sequence[int], most: int, cost: int) -> list[tuple[int, int]]:
    """The cuts of descending ``lengths`` into groups that take the least time, and at most ``most`` tokens each.

    A group takes the time of its tokens, padding included, and that of ``cost`` more. Between texts of one length there
    is no cut but where a group would be too large, so the time is quadratic in the number of distinct lengths only.

    Args:
        lengths: tokens of each text, the longest first, none below 1.
        most: tokens of a group with its padding; a longer text is a group of its own.
        cost: of a group in tokens.

    Returns:
        First text of each group and the one after its last.
    """
    starts = [0]
    for _, equal in groupby(lengths):
        starts.append(starts[-1] + sum(1 for _ in equal))
    best, came_from = [0], [0]
    for stop in range(1, len(starts)):
        options = [best[start] + _cost(lengths, starts[start], starts[stop], most, cost) for start in range(stop)]
        best.append(min(options))
        came_from.append(options.index(best[-1]))
    groups: list[tuple[int, int]] = []
    stop = len(starts) - 1
    while stop:
        start = came_from[stop]
        groups[:0] = _split(starts[start], starts[stop], max(1, most // lengths[starts[start]]))
        stop = start
    return groups


def _cost(lengths: Sequence[int], start: int, stop: int, most: int, cost: int) -> int:
    tokens = lengths[start] * (stop - start)
    rows = max(1, most // lengths[start])
    return tokens + cost * -(-(stop - start) // rows)


def _split(start: int, stop: int, rows: int) -> list[tuple[int, int]]:
    """As few pieces of at most so many ``rows`` as can be, of sizes as equal as can be."""
    pieces = -(-(stop - start) // rows)
    cuts = [start + (stop - start) * piece // pieces for piece in range(pieces + 1)]
    return list(pairwise(cuts))
