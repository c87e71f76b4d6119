"""Rows that are the same, or nearly so: by hashes of texts without case and punctuation, and of images made small."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from scipy import sparse
from scipy.sparse import csgraph

_SIDE = 8  # of the grid of an image's fingerprint
_BITS = 2 * _SIDE * _SIDE
_COLOURS = 4 * 4 * 3
_FAR_BITS = 12  # of 128: more, and two images are no near copies
_FAR_COLOUR = 6.0  # levels of 255, on average over a 4 × 4 thumbnail
_BANDS = 8  # of 16 bits: two fingerprints that differ in up to 7 bits agree in a band, and of more most do
_MOST = 20_000_000  # comparisons, half a minute
_ONES = np.array([number.bit_count() for number in range(256)], dtype=np.uint8)

FINGERPRINT = _BITS // 8 + _COLOURS
"""Bytes of the fingerprint of an image."""

_WORDS = re.compile(r"\w+")


def normalised(text: str) -> str:
    """The words of a text, without case, punctuation and compatibility forms (NFKC); the text itself if it has none."""
    words = _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())
    return " ".join(words) if words else text.strip()


def image_fingerprint(image: Image.Image) -> bytes:
    """``FINGERPRINT`` bytes that are alike for an image scaled, compressed anew or slightly retouched: whether each of
    8 × 8 cells is darker than the next to the right and below (dHash, Krawetz 2013), and 4 × 4 mean colours."""
    small = image.convert("RGB").resize((_SIDE + 1, _SIDE + 1), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L"), dtype=np.int16)
    bits = np.concatenate([(np.diff(grey, axis=1)[:_SIDE] > 0).ravel(), (np.diff(grey, axis=0)[:, :_SIDE] > 0).ravel()])
    colours = np.asarray(small.resize((4, 4), Image.Resampling.BOX), dtype=np.uint8)
    return np.packbits(bits).tobytes() + colours.tobytes()


def same(keys: np.ndarray) -> np.ndarray:
    """(N,) int64 numbers of groups, from 0 up, of things with equal ``keys``."""
    return np.unique(keys, return_inverse=True)[1].reshape(-1)


def near(fingerprints: np.ndarray) -> tuple[np.ndarray, bool]:
    """Groups of images that are near copies of each other, or of one that is.

    Args:
        fingerprints: (N, FINGERPRINT) uint8.

    Returns:
        (N,) numbers of groups; and whether all were compared, or so many look alike that some were not.
    """
    distinct, of = np.unique(fingerprints, axis=0, return_inverse=True)
    of = of.reshape(-1)
    bits, colours = distinct[:, : _BITS // 8], distinct[:, _BITS // 8 :].astype(np.float32)
    left, links = _MOST, [np.empty((2, 0), dtype=np.int64)]
    bands = np.ascontiguousarray(bits).view(np.uint16)
    brightness = colours.mean(axis=1)
    for band in range(_BANDS):
        order = np.lexsort((brightness, bands[:, band]))
        for one, other in _neighbours(bands[order, band], brightness[order]):
            if left <= 0:
                break
            left -= len(one)
            a, b = order[one], order[other]
            close = np.abs(colours[a] - colours[b]).mean(axis=1) <= _FAR_COLOUR
            a, b = a[close], b[close]
            alike = _ONES[bits[a] ^ bits[b]].sum(axis=1) <= _FAR_BITS
            links.append(np.stack([a[alike], b[alike]]))
    pairs = np.concatenate(links, axis=1)
    graph = sparse.coo_array((np.ones(pairs.shape[1], np.int8), (pairs[0], pairs[1])), shape=(len(distinct),) * 2)
    return csgraph.connected_components(graph, directed=False)[1][of].astype(np.int64), left > 0


def _neighbours(
    band: np.ndarray, brightness: np.ndarray, chunk: int = 1 << 20
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of places with equal ``band`` and about equal ``brightness``, by both of which they are sorted."""
    ends = np.searchsorted(band, band, side="right")
    for step in range(1, len(band)):
        first = np.flatnonzero(np.arange(step, len(band) + step) < ends)
        first = first[brightness[first + step] - brightness[first] <= _FAR_COLOUR]
        if not len(first):
            return
        for start in range(0, len(first), chunk):
            part = first[start : start + chunk]
            yield part, part + step


def members(groups: np.ndarray, kinds: np.ndarray | None = None) -> list[np.ndarray]:
    """The places of each group of two or more; with ``kinds`` (N,), of those that have two kinds or more."""
    order = np.flatnonzero((np.bincount(groups) > 1)[groups] if len(groups) else groups)
    order = order[np.argsort(groups[order], kind="stable")]
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    parts: Sequence[np.ndarray] = np.split(order, starts[1:]) if len(order) else []
    found = [part for part in parts if kinds is None or (kinds[part] != kinds[part[0]]).any()]
    return sorted(found, key=lambda part: int(part[0]))
