"""Texts in groups of similar length, so that little of what passes through a tower is padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise


def group_by_length(lengths: Sequence[int], most: int, cost: int) -> list[tuple[int, int]]:
    """Cuts of descending ``lengths`` into groups of at most ``most`` tokens: those between different lengths that take
    the least time.

    A group takes the time of its tokens, padding included, and that of ``cost`` more. Texts of one length stay
    together where one group holds them, and form groups of their own where it does not.

    Args:
        lengths: tokens of each text, the longest first, none below 1.
        most: tokens of a group with its padding; a longer text is a group of its own.
        cost: of a group in tokens.

    Returns:
        First text of each group and the one after its last.
    """
    starts = [0, *(stop for _, stop in equal_lengths(lengths))]
    best, came_from = [0], [0]
    for stop in range(1, len(starts)):
        least, begin = _alone(lengths[starts[stop - 1]], starts[stop] - starts[stop - 1], most, cost), stop - 1
        least += best[begin]
        for start in range(stop - 2, -1, -1):
            tokens = lengths[starts[start]] * (starts[stop] - starts[start])
            if tokens > most:
                break
            if best[start] + tokens + cost < least:
                least, begin = best[start] + tokens + cost, start
        best.append(least)
        came_from.append(begin)
    groups: list[tuple[int, int]] = []
    stop = len(starts) - 1
    while stop:
        start = came_from[stop]
        groups[:0] = _split(starts[start], starts[stop], max(1, most // lengths[starts[start]]))
        stop = start
    return groups


def equal_lengths(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """The groups of equal neighbours in ``lengths``: first text of each, and the one after its last."""
    cuts = [0, *accumulate(sum(1 for _ in equal) for _, equal in groupby(lengths))]
    return list(pairwise(cuts))


def _alone(length: int, count: int, most: int, cost: int) -> int:
    """The time of texts of one length in groups of their own."""
    return length * count + cost * -(-count // max(1, most // length))


def _split(start: int, stop: int, rows: int) -> list[tuple[int, int]]:
    """As few pieces of at most so many ``rows`` as can be, of sizes as equal as can be."""
    pieces = -(-(stop - start) // rows)
    cuts = [start + (stop - start) * piece // pieces for piece in range(pieces + 1)]
    return list(pairwise(cuts))
