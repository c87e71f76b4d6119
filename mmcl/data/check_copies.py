"""Which rows of a data set repeat others, exactly or nearly, and which of them stand in another part of it, too."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmcl.data.near_copies import FINGERPRINT, members, near, same


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
class Items:
    """Images or texts of the rows of one part.

    Attributes:
        part: what the part is called.
        names: of its rows.
        row: (N,) the row of each item.
        exact: (N,) int64, equal for equal items.
        alike: (N,) int64, equal for texts that are nearly the same; or (N, FINGERPRINT) uint8 of images.
    """

    part: str
    names: Names
    row: np.ndarray
    exact: np.ndarray
    alike: np.ndarray


def fingerprints(content: bytes | bytearray) -> np.ndarray:
    """(N, FINGERPRINT) uint8."""
    return np.frombuffer(bytes(content), dtype=np.uint8).reshape(-1, FINGERPRINT)


def copies(items: Items) -> dict[str, Any]:
    """The rows of equal items, and of nearly equal ones, in groups: ``repeated_rows`` and ``near_rows``, lists of lists
    of names; ``near``, how many distinct items are nearly another one; ``near_incomplete`` if not all were compared."""
    exact = same(items.exact)
    groups, complete = _alike(items.alike)
    near_groups = members(groups, exact)
    found = {
        "repeated_rows": _named(items, members(exact)),
        "near": sum(len(np.unique(exact[group])) - 1 for group in near_groups),
        "near_rows": _named(items, near_groups),
    }
    return found if complete else found | {"near_incomplete": True}


def across(items: Items, parts: np.ndarray) -> list[list[str]]:
    """The rows of equal and nearly equal items that stand in two ``parts`` (rows,) or more, in groups."""
    groups, _ = _alike(items.alike)
    return _named(items, members(groups, parts[items.row]))


def leaks(items: Items, others: Sequence[Items]) -> list[dict[str, Any]]:
    """The rows of ``items`` that stand in another part as well, exactly or nearly: each with the name of its part where
    the items are of several, the first row there, and whether the two are equal."""
    sides = [items, *others]
    part = np.repeat(np.arange(len(sides)), [len(side.row) for side in sides])
    row = np.concatenate([side.row for side in sides])
    exact = same(np.concatenate([side.exact for side in sides]))
    groups, _ = _alike(np.concatenate([side.alike for side in sides]))
    found: dict[int, dict[str, Any]] = {}
    for group in members(groups, part):
        theirs = group[part[group] > 0]
        for place in group[part[group] == 0].tolist():
            equal = theirs[exact[theirs] == exact[place]]
            other = int(equal[0] if len(equal) else theirs[0])
            side = sides[part[other]]
            entry = {
                "id": items.names[row[place]],
                "in": side.part,
                "as": side.names[row[other]],
                "equal": len(equal) > 0,
            }
            if row[place] not in found or (entry["equal"] and not found[row[place]]["equal"]):
                found[int(row[place])] = entry
    return [found[key] for key in sorted(found)]


def _alike(alike: np.ndarray) -> tuple[np.ndarray, bool]:
    return near(alike) if alike.ndim == 2 else (same(alike), True)


def _named(items: Items, groups: Sequence[np.ndarray]) -> list[list[str]]:
    return [[items.names[row] for row in dict.fromkeys(items.row[group].tolist())] for group in groups]
