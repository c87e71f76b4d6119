"""Batches in which nothing occurs twice: by hashes, in time linear in the rows."""

from __future__ import annotations

from itertools import chain, pairwise

import numpy as np


class Identities:
    """What each row has, as numbers that are equal for equal things.

    Args:
        rows: (M,) row of each thing; a row may have any number of them, in any order.
        hashes: (M,) of the things. One that a row has twice (its anchor is its positive) counts once.
        total: rows are numbered from 0 up to it.
    """

    def __init__(self, rows: np.ndarray, hashes: np.ndarray, total: int) -> None:
        _, codes = np.unique(hashes, return_inverse=True)
        pairs = np.unique(np.stack([rows, codes.reshape(-1)], axis=1), axis=0)
        self._first = np.searchsorted(pairs[:, 0], np.arange(total + 1))
        self._codes = pairs[:, 1]

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The place in ``rows`` and the code of each thing of these rows, place by place."""
        first, counts = self._first[rows], self._first[rows + 1] - self._first[rows]
        place = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
        return place, self._codes[first[place] + within]


def distinct_batches(
    rows: np.ndarray, batch_size: int, identities: Identities, spare: np.ndarray | None = None
) -> tuple[np.ndarray, int]:
    """Cut rows into batches, none of which has a thing twice.

    Rows that share nothing with others stay where they are, as far as places are free. Of the others each goes into the
    batch that it stands in or, if something of it is there, into the first later one with a free place after all that
    have anything of it. What finds no such batch is left out; in its stead, rows that fit come a second time or, if
    there are none, spare ones.

    Args:
        rows: in their order. Those that exceed full batches fill gaps.
        batch_size: rows of a batch.
        identities: of the rows.
        spare: rows besides.

    Returns:
        (batches, ``batch_size``) places in ``rows``, those in ``spare`` counted on from there; and how many of ``rows``
        found no batch while others stood in for them.

    Raises:
        ValueError: some batch cannot be filled, since too many rows share a thing.
    """
    count = len(rows) // batch_size
    place, code = identities.of(rows)
    shared = np.bincount(code)[code] > 1
    touched = np.zeros(len(rows), dtype=bool)
    touched[place[shared]] = True
    if not touched.any():
        return np.arange(count * batch_size).reshape(count, batch_size), 0
    codes = _split(place, code, len(rows))
    batch_of = _placed(np.flatnonzero(touched), codes, count, batch_size)
    batches: list[list[int]] = [[] for _ in range(count)]
    for row, batch in batch_of.items():
        batches[batch].append(row)
    free = iter(np.flatnonzero(~touched).tolist())
    for members in batches:
        members += [row for _, row in zip(range(batch_size - len(members)), free, strict=False)]
    missing = sum(batch_size - len(members) for members in batches)
    if missing:
        if spare is not None:
            codes += _split(*identities.of(spare), len(spare))
        _fill(batches, batch_size, codes, len(rows))
    return np.array([sorted(members) for members in batches]).reshape(count, batch_size), missing


def _split(place: np.ndarray, code: np.ndarray, count: int) -> list[list[int]]:
    """The codes of each place."""
    ends = np.searchsorted(place, np.arange(count + 1)).tolist()
    codes = code.tolist()
    return [codes[start:end] for start, end in pairwise(ends)]


def _placed(places: np.ndarray, codes: list[list[int]], count: int, batch_size: int) -> dict[int, int]:
    """The batch of each of ``places`` that finds one, in linear time: full batches are jumped over."""
    free_places = [batch_size] * count
    following = list(range(count + 1))  # of a full batch, one after it that may have a free place; of others, itself
    last: dict[int, int] = {}  # of a code, the last batch that has it

    def first_with_place(batch: int) -> int:
        while following[batch] != batch:
            following[batch] = following[following[batch]]
            batch = following[batch]
        return batch

    found: dict[int, int] = {}
    for place in places.tolist():
        earliest = max((last[code] + 1 for code in codes[place] if code in last), default=0)
        batch = first_with_place(min(max(earliest, place // batch_size), count))
        if batch == count:
            continue
        found[place] = batch
        free_places[batch] -= 1
        if not free_places[batch]:
            following[batch] = batch + 1
        last.update(dict.fromkeys(codes[place], batch))
    return found


def _fill(batches: list[list[int]], batch_size: int, codes: list[list[int]], count: int) -> None:
    """Fill gaps with rows that fit, one after the other through the first ``count``, so that few come more than twice;
    and with the others, which are spare, where these do not suffice."""
    at = 0
    for members in batches:
        if len(members) == batch_size:
            continue
        taken = {code for row in members for code in codes[row]}
        for row in chain(range(at, count), range(at), range(count, len(codes))):
            if taken.isdisjoint(codes[row]):
                members.append(row)
                taken.update(codes[row])
                at = (row + 1) % count if row < count else at
                if len(members) == batch_size:
                    break
        else:
            raise ValueError(f"{batch_size} rows that have nothing in common cannot be found")
