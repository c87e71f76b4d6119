"""Rows that are the same, or nearly so: by hashes of texts without case and punctuation, and of images made small."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import sparse

_SIDE = 12  # of the grid of an image's brightness
_GREYS = _SIDE * _SIDE
_COLOURS = 4 * 4 * 3
# Levels of 255 in the worst cell. Of copies at half the size and JPEG's quality 60, the least alike of 200 photographs
# differs by 3 in brightness and 6 in colour, of 1,200 emoji by 12 and 20, and 99% by at most 11 and 15.
_FAR_GREY = 16
_FAR_COLOUR = 20
_FAR_MEAN = 6.0
_FAR_SHARE = 0.1  # of the variance of an image's brightness: what two of little contrast may differ by
_GRADIENT = 6.0  # levels between cells; compression changes the sign of less
_BANDS = 8  # of 15 gradients. Near copies agree in one, as good as always
_MOST = 20_000_000  # comparisons, half a minute
_PAIRS = 1 << 16  # compared at a time

FINGERPRINT = _GREYS + _COLOURS
"""Bytes of the fingerprint of an image."""

_WORDS = re.compile(r"\w+")


def normalised(text: str) -> str:
    """The words of a text, without case, punctuation and compatibility forms (NFKC); the text itself if it has none."""
    words = _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())
    return " ".join(words) if words else text.strip()


def image_fingerprint(image: Image.Image) -> bytes:
    """``FINGERPRINT`` bytes that are alike for an image scaled, compressed anew or slightly retouched: its brightness
    in 12 × 12 cells, and its colour in 4 × 4."""
    # A triangle filter: cells of a box are of whole pixels, and are others in a copy of another size.
    small = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    return small.convert("L").tobytes() + small.resize((4, 4), Image.Resampling.BOX).tobytes()


def same(keys: np.ndarray) -> np.ndarray:
    """(N,) int64 numbers of groups, from 0 up, of things with equal ``keys``."""
    return np.unique(keys, return_inverse=True)[1].reshape(-1)


class Alike(NamedTuple):
    """Which of N things look alike.

    Attributes:
        kinds: (N,) int64, from 0 up, equal for those that cannot be told apart.
        pairs: (2, M) kinds that look alike, the lower one first; each pair once.
        complete: whether all were compared, or so many look alike that some were not.
    """

    kinds: np.ndarray
    pairs: np.ndarray
    complete: bool

    def neighbours(self) -> sparse.csr_array:
        """(kinds, kinds), not zero for two that look alike."""
        count = int(self.kinds.max(initial=-1)) + 1
        one, other = self.pairs
        ends = np.concatenate([one, other]), np.concatenate([other, one])
        return sparse.csr_array((np.ones(len(ends[0]), np.int8), ends), shape=(count, count))

    def groups(self) -> np.ndarray:
        """(N,) numbers of groups. In each there is one that all others look like: likeness is not passed on, by which
        images that have nothing in common would end in one group."""
        links = self.neighbours()
        degrees = np.diff(links.indptr)
        group = np.arange(links.shape[0])
        free = np.ones(len(group), dtype=bool)
        for kind in np.argsort(-degrees, kind="stable")[: np.count_nonzero(degrees)].tolist():
            if free[kind]:
                near = links.indices[links.indptr[kind] : links.indptr[kind + 1]]
                near = near[free[near]]
                group[near], free[near], free[kind] = kind, False, False
        return group[self.kinds].astype(np.int64)


def near(fingerprints: np.ndarray) -> Alike:
    """Which images look alike: equal but for scale, compression and small changes.

    In no cell of the grids they differ by much, and in brightness by a small part of their contrast.

    Args:
        fingerprints: (N, FINGERPRINT) uint8.
    """
    distinct, kinds = np.unique(fingerprints, axis=0, return_inverse=True)
    greys, colours = distinct[:, :_GREYS], distinct[:, _GREYS:]
    contrast, brightness = greys.var(axis=1, dtype=np.float32), greys.mean(axis=1)
    bands = _gradients(greys)
    flat = ~bands.any(axis=1)
    complete, left, links = True, 0, [np.empty((2, 0), dtype=np.int64)]
    for number, band in enumerate(bands.T, 1):
        left += _MOST // _BANDS
        # Flat corners are no likeness: only images that are flat throughout are compared for it, once.
        order = np.flatnonzero((band > 0) | (flat & (number == _BANDS)))
        order = order[np.lexsort((brightness[order], band[order]))]
        for one, other in _neighbours(band[order], brightness[order]):
            if left <= 0:
                complete = False
                break
            left -= len(one)
            a, b = order[one], order[other]
            close = _apart(colours[a], colours[b]).max(axis=1) <= _FAR_COLOUR
            a, b = a[close], b[close]
            apart = _apart(greys[a], greys[b])
            share = np.square(apart, dtype=np.float32).mean(axis=1) - 1  # a level of rounding
            alike = (apart.max(axis=1) <= _FAR_GREY) & (share <= _FAR_SHARE * np.minimum(contrast[a], contrast[b]))
            links.append(np.sort(np.stack([a[alike], b[alike]]), axis=0))
    return Alike(kinds.reshape(-1), np.unique(np.concatenate(links, axis=1), axis=1), complete)


def _apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.abs(one.astype(np.int16) - other)


def _gradients(greys: np.ndarray) -> np.ndarray:
    """(N, bands) uint16: where it is brighter by ``_GRADIENT`` two cells on, to the right and below, a bit each (dHash,
    Krawetz 2013, without the bits that are noise)."""
    grid = greys.reshape(-1, _SIDE, _SIDE).astype(np.int16)
    right, below = grid[:, ::2] + grid[:, 1::2], grid[:, :, ::2] + grid[:, :, 1::2]  # of two cells each
    right, below = right[:, :, 2:] - right[:, :, :-2], below[:, 2:] - below[:, :-2]
    steps = np.stack([right, below.transpose(0, 2, 1)], axis=1) > 2 * _GRADIENT
    return np.packbits(steps.reshape(len(grid), _BANDS, 15), axis=2).view(np.uint16)[:, :, 0]


def _neighbours(band: np.ndarray, brightness: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of places with equal ``band`` and about equal ``brightness``, by both of which they are sorted."""
    ends = np.searchsorted(band, band, side="right")
    for step in range(1, len(band)):
        first = np.flatnonzero(np.arange(step, len(band) + step) < ends)
        first = first[brightness[first + step] - brightness[first] <= _FAR_MEAN]
        if not len(first):
            return
        for start in range(0, len(first), _PAIRS):
            part = first[start : start + _PAIRS]
            yield part, part + step


def members(groups: np.ndarray, kinds: np.ndarray | None = None) -> list[np.ndarray]:
    """The places of each group of two or more; with ``kinds`` (N,), of those that have two kinds or more."""
    order = np.flatnonzero((np.bincount(groups) > 1)[groups] if len(groups) else groups)
    order = order[np.argsort(groups[order], kind="stable")]
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    parts: Sequence[np.ndarray] = np.split(order, starts[1:]) if len(order) else []
    found = [part for part in parts if kinds is None or (kinds[part] != kinds[part[0]]).any()]
    return sorted(found, key=lambda part: int(part[0]))
