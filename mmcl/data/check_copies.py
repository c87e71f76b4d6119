"""Which rows of a data set repeat others, exactly or nearly, and which of them stand in another part of it, too."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmcl.data.near_copies import FINGERPRINT, Alike, members, near, same


@dataclass
class Names:
    """The names of rows, in a few bytes each."""

    _text: bytearray = field(default_factory=bytearray)
    _ends: array[int] = field(default_factory=lambda: array("q", [0]))

    def add(self, name: str) -> None:
        self._text += name.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> str:
        return self._text[self._ends[row] : self._ends[row + 1]].decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Captions:
    """The captions of rows.

    Attributes:
        ends: (rows,) behind the last one of each row.
        alike: (captions,) int64, equal for those that are nearly the same.
    """

    ends: np.ndarray
    alike: np.ndarray

    def __getitem__(self, row: int) -> list[int]:
        found: list[int] = self.alike[self.ends[row - 1] if row else 0 : self.ends[row]].tolist()
        return found


@dataclass(frozen=True)
class Items:
    """Images or texts of the rows of one part.

    Attributes:
        part: what the part is called.
        names: of its rows.
        row: (N,) the row of each item.
        exact: (N,) int64, equal for equal items.
        alike: (N,) int64, equal for texts that are nearly the same; or (N, FINGERPRINT) uint8 of images.
        captions: of the rows, where the items are images that have any.
    """

    part: str
    names: Names
    row: np.ndarray
    exact: np.ndarray
    alike: np.ndarray
    captions: Captions | None = None


def fingerprints(content: bytes | bytearray) -> np.ndarray:
    """(N, FINGERPRINT) uint8."""
    return np.frombuffer(bytes(content), dtype=np.uint8).reshape(-1, FINGERPRINT)


def copies(items: Items) -> dict[str, Any]:
    """The rows of equal items, and of nearly equal ones, in groups: ``repeated_rows`` and ``near_rows``, lists of lists
    of names; ``near``, how many distinct items are nearly another one; ``near_incomplete`` if not all were compared."""
    exact = same(items.exact)
    alike = _alike(items.alike)
    near_groups = members(alike.groups(), exact)
    found = {
        "repeated_rows": _named(items, members(exact)),
        "near": sum(len(np.unique(exact[group])) - 1 for group in near_groups),
        "near_rows": _named(items, near_groups),
    }
    return found if alike.complete else found | {"near_incomplete": True}


def across(items: Items, parts: np.ndarray) -> list[list[str]]:
    """The rows of equal and nearly equal items that stand in two ``parts`` (rows,) or more, in groups."""
    return _named(items, members(_alike(items.alike).groups(), parts[items.row]))


def leaks(items: Items, others: Sequence[Items]) -> list[dict[str, Any]]:
    """The rows of ``items`` of which another part has an equal or a nearly equal item: each with the name of that part,
    the first row there, and whether the two are ``equal``; of images with captions also whether a ``caption`` is nearly
    the same, for which a row there is preferred."""
    sides = [items, *others]
    captioned = all(side.captions is not None for side in sides)
    part = np.repeat(np.arange(len(sides)), [len(side.row) for side in sides])
    row = np.concatenate([side.row for side in sides])
    exact = same(np.concatenate([side.exact for side in sides])).tolist()
    alike = _alike(np.concatenate([side.alike for side in sides]))
    kinds, near_kinds = alike.kinds, alike.neighbours()

    def captions(place: int) -> list[int]:
        of = sides[part[place]].captions
        return of[row[place]] if captioned and of is not None else []

    own = np.flatnonzero(part == 0)
    known = np.zeros(near_kinds.shape[0], dtype=bool)
    known[kinds[own]] = True
    known |= near_kinds @ known.astype(np.int64) > 0
    first: dict[tuple[bool, int, int | None], int] = {}  # (equal, kind or identity, caption) to a place
    for place in np.flatnonzero((part > 0) & known[kinds]).tolist():
        for caption in (None, *captions(place)):
            first.setdefault((True, exact[place], caption), place)
            first.setdefault((False, int(kinds[place]), caption), place)

    found: dict[int, dict[str, Any]] = {}
    for place in own.tolist():
        kind = int(kinds[place])
        like = (kind, *near_kinds.indices[near_kinds.indptr[kind] : near_kinds.indptr[kind + 1]].tolist())
        keys = [(True, exact[place]), *((False, number) for number in like)]
        wanted = [(*key, caption) for key in keys for caption in captions(place)] + [(*key, None) for key in keys]
        best = next((key for key in wanted if key in first), None)
        if best is None:
            continue
        side, other = sides[part[first[best]]], row[first[best]]
        entry = {"id": items.names[row[place]], "in": side.part, "as": side.names[other], "equal": best[0]}
        if captioned:
            entry["caption"] = best[2] is not None
        if row[place] not in found or (entry["equal"] and not found[row[place]]["equal"]):
            found[int(row[place])] = entry
    return [found[key] for key in sorted(found)]


def _alike(alike: np.ndarray) -> Alike:
    return near(alike) if alike.ndim == 2 else Alike(same(alike), np.empty((2, 0), dtype=np.int64), True)


def _named(items: Items, groups: Sequence[np.ndarray]) -> list[list[str]]:
    return [[items.names[row] for row in dict.fromkeys(items.row[group].tolist())] for group in groups]
