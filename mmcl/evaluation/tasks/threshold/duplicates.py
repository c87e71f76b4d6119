"""The threshold of a model without labelled pairs: by items that are known to be duplicates, and random pairs."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from mmcl.data.images import decode
from mmcl.data.near_copies import image_fingerprint, near, normalised
from mmcl.data.rows import Rows
from mmcl.evaluation.tasks.embed_rows import image_vectors
from mmcl.evaluation.tasks.threshold.pairs import column_vectors
from mmcl.evaluation.tasks.threshold.threshold import PRECISIONS, Thresholds, threshold
from mmcl.evaluation.texts import Encodes, text_identities
from mmcl.runtime.errors import MmclError

NEGATIVES = 1_000_000
"""Random pairs by default: without a single wrong one among half of them, fewer than one in 100,000 is wrong."""

_BLOCK = 8192
log = logging.getLogger("mmcl")


def threshold_of_duplicates(
    vectors: np.ndarray,
    groups: Sequence[Hashable],
    precision: float | Sequence[float] = PRECISIONS,
    *,
    confidence: float = 0.95,
    prevalence: float | None = None,
    at_least: bool = False,
    negatives: int = NEGATIVES,
    seed: int = 0,
) -> Thresholds:
    """The cosine from which two items of a corpus are the same.

    Pairs that are the same are drawn from the groups, one from each, so that they are independent; pairs that are not
    are drawn at random among all others. Duplicates that the groups do not know count as errors there, which makes the
    threshold stricter.

    Args:
        vectors: (N, D).
        groups: N values, equal for items that are the same; None for one that is like no other.
        precision, confidence, at_least, seed: see :func:`mmcl.evaluation.threshold`.
        prevalence: the share of the same among the pairs that will be compared; by default that among *all* pairs of
            the corpus, as the groups have it: low, as it is where everything is compared with everything.
        negatives: random pairs. A low prevalence takes many.

    Raises:
        MmclError: numbers that do not fit or are not finite, no group of two, or one group alone.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or len(vectors) != len(groups):
        raise MmclError(f"threshold: vectors {vectors.shape} and {len(groups)} groups; give a group for each vector")
    if not np.isfinite(vectors).all():
        row = int(np.argmin(np.isfinite(vectors).all(1)))
        raise MmclError(f"threshold: vector {row} has a NaN or infinite number")
    codes, sizes = _codes(groups)
    rng, pairs = np.random.default_rng(seed), len(codes) * (len(codes) - 1) // 2
    together = int((sizes * (sizes - 1) // 2).sum())
    if not 0 < together < pairs:
        found = "no two of them are" if not together else "all of them are"
        raise MmclError(f"threshold: {len(codes):,} items, {found} the same; name groups of duplicates")
    first, second = _one_of_each(codes, sizes, rng)
    others = _random(codes, negatives, rng)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    scores = [
        np.einsum("nd,nd->n", unit[one[start : start + _BLOCK]], unit[other[start : start + _BLOCK]])
        for one, other in ((first, second), others)
        for start in range(0, len(one), _BLOCK)
    ]
    same = np.arange(len(first) + len(others[0])) < len(first)
    share = together / pairs if prevalence is None else prevalence
    options: dict[str, Any] = {"confidence": confidence, "at_least": at_least, "seed": seed}
    return threshold(np.concatenate(scores), same, precision, prevalence=share, **options)


def threshold_of_items(
    encoder: Encodes,
    rows: Rows,
    column: str,
    modality: str = "text",
    *,
    groups: str | None = None,
    prompt: str | None = None,
    **options: Any,
) -> Thresholds:
    """As :func:`threshold_of_duplicates`, of a column of texts or images.

    Args:
        encoder: anything with ``encode(texts or images) -> (N, D)``.
        rows: the table.
        column: of the items.
        modality: ``text`` or ``image``.
        groups: a column that is equal for items that are the same. Without one they are found by hash: texts of the
            same words without case and punctuation, images that look the same at 12 × 12 pixels. Of items that are
            equal to the model one alone counts, since their cosine is 1 whatever the model is.
        prompt: of texts.
        options: other arguments of :func:`threshold_of_duplicates`.

    Raises:
        MmclError: as there.
    """
    rows.require([column] if groups is None else [column, groups])
    named = None if groups is None else rows.labels(groups)
    of: Sequence[Hashable]
    if modality == "image":
        vectors, readable, hashes = image_vectors(encoder, rows, column)
        of = _looks(rows, column, readable) if named is None else [named[row] for row in readable]
        identities: Sequence[Hashable] = hashes.tolist()
    else:
        vectors, places = column_vectors(encoder, rows, column, modality, prompt=prompt)
        cells = rows.texts(column)
        texts = [str(cells[row]) for row in places]
        of = [normalised(text) for text in texts] if named is None else [named[row] for row in places]
        identities = text_identities(encoder, texts, prompt)
    kept = list({identity: place for place, identity in reversed(list(enumerate(identities)))}.values())
    kept.sort()
    if len(kept) < len(identities):
        log.info("%s: %d of %d items are equal to another; one of each counts", rows.name, len(of) - len(kept), len(of))
    return threshold_of_duplicates(vectors[kept], [of[place] for place in kept], **options)


def _looks(rows: Rows, column: str, readable: Sequence[int]) -> list[int]:
    """A number for each image, equal for those that look the same."""
    prints = [image_fingerprint(decode(rows.images(column, [row])[0])) for row in readable]
    groups: list[int] = near(np.stack([np.frombuffer(each, dtype=np.uint8) for each in prints])).groups().tolist()
    return groups


def _codes(groups: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) numbers of groups, and how many items each has; an item without a group has one of its own."""
    numbers: dict[Hashable, int] = {}
    codes = np.array(
        [numbers.setdefault(place if group is None else (group,), len(numbers)) for place, group in enumerate(groups)],
        dtype=np.int64,
    )
    return codes, np.bincount(codes, minlength=1)


def _one_of_each(codes: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two items of every group of two or more, at random."""
    order = rng.permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    starts = (np.cumsum(sizes) - sizes)[sizes > 1]
    return order[starts], order[starts + 1]


def _random(codes: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``count`` random pairs of items of different groups, or somewhat fewer."""
    one, other = rng.integers(len(codes), size=(2, count))
    apart = codes[one] != codes[other]
    return one[apart], other[apart]
