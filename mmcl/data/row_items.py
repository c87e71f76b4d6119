"""Which items a row has, where it may have several, and which of them is used when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from mmcl.data.identity import uniforms

CAPTION_STREAM = 0xCA9  # of a row's random numbers, the one that chooses among its captions
ITEM_STREAM = 0x17E  # the one that orders its items


class RowItems(NamedTuple):
    """The items of each row: of row i, ``items`` from ``first[i]`` up to ``first[i + 1]``."""

    items: np.ndarray
    first: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[RowItems], counts: Sequence[int]) -> RowItems:
        """Of each row its items of every part, which has so many in all; they are numbered through the parts."""
        starts = np.cumsum([0, *counts])
        items = np.concatenate([part.items + start for part, start in zip(parts, starts, strict=False)])
        rows = np.concatenate([np.repeat(np.arange(len(first) - 1), np.diff(first)) for _, first in parts])
        return cls(items[np.argsort(rows, kind="stable")], np.sum([first for _, first in parts], axis=0))


def choose_caption(counts: np.ndarray, seeds: Tensor) -> np.ndarray:
    """For rows with ``counts`` captions each, the number of the one that the row's seed chooses: int64 (N,)."""
    if counts.max(initial=1) == 1:
        return np.zeros(len(counts), dtype=np.int64)
    draw = uniforms(seeds, 1, CAPTION_STREAM)[:, 0].numpy()
    return (draw * counts).astype(np.int64)


def choose_item(counts: np.ndarray, seeds: Tensor, draw: int) -> np.ndarray:
    """For rows with ``counts`` (N,) items each, the number of the one that a draw takes: int64 (N,). Draws go through
    the items in an order by the row's seed, and again from its start."""
    turn = uniforms(seeds, int(counts.max(initial=1)), ITEM_STREAM).numpy()
    turn[np.arange(turn.shape[1]) >= counts[:, None]] = 1.0  # beyond the last: never first
    order = np.argsort(turn, axis=1, kind="stable")
    return order[np.arange(len(counts)), draw % np.maximum(counts, 1)]


def all_items(first: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers from ``first[i]`` up to ``first[i + 1]`` of all rows, and the position in ``rows`` of each."""
    counts = first[rows + 1] - first[rows]
    owner = np.repeat(np.arange(len(rows)), counts)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    return first[rows][owner] + within, owner
