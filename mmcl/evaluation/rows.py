"""From a model and a table of rows to scores: what the command line judges."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL.Image import Image

from mmcl.data.identity import stable_hash
from mmcl.data.images import ImageError, ImageInput, decode, usable_cpus
from mmcl.data.rows import Rows
from mmcl.data.tokens import texts_of
from mmcl.evaluation.retrieval import Scores, retrieval_pairs
from mmcl.evaluation.zero_shot import Encodes, ZeroShotScores, classifier, zero_shot
from mmcl.runtime.errors import MmclError
from mmcl.runtime.progress import progress

_BLOCK = 64  # decoded pictures are large
log = logging.getLogger("mmcl")


def retrieval_of_rows(
    encoder: Encodes,
    rows: Rows,
    *,
    image: str = "image",
    text: str = "text",
    ks: Iterable[int] = (1, 5, 10),
    bootstrap: int = 1000,
) -> dict[str, Scores]:
    """Retrieval both ways between the pictures of a column and the captions of another, one or a list a row.

    Equal captions are right answers for each other's pictures, and equal pictures for each other's captions: a picture
    that stands in five rows with a caption each is as right in any of them. Rows with an unreadable picture or without
    a caption are left out, and their number is logged.

    Returns:
        {"image_to_text": Scores, "text_to_image": Scores}.

    Raises:
        MmclError: there is no such column, or no usable row.
    """
    rows.require([image, text])
    captions = [texts_of(value) for value in rows.texts(text)]
    vectors, readable, hashes = _image_vectors(encoder, rows, image)
    kept = [row for row in readable if captions[row]]
    _report(rows, len(rows) - len(kept), "an unreadable picture or no caption")
    flat = [caption for row in kept for caption in captions[row]]
    owner = [position for position, row in enumerate(kept) for _ in captions[row]]
    place = {row: position for position, row in enumerate(readable)}
    chosen = [place[row] for row in kept]
    texts = encoder.encode(flat)
    return retrieval_pairs(
        vectors[chosen], texts, owner, ks, image_ids=hashes[chosen], text_ids=flat, bootstrap=bootstrap
    )


def zero_shot_of_rows(
    encoder: Encodes,
    rows: Rows,
    *,
    label: str,
    image: str = "image",
    templates: str | Sequence[str] = ("{}",),
    ks: Iterable[int] = (1, 5),
    bootstrap: int = 1000,
) -> ZeroShotScores:
    """Zero-shot classification of the pictures of a column by the class names that stand in another.

    The classes are the distinct names, in alphabetical order.

    Raises:
        MmclError: there is no such column, no usable row, or a template has no place for the name.
    """
    rows.require([image, label])
    labels = [value if isinstance(value, str) and value.strip() else None for value in rows.texts(label)]
    names = sorted({name for name in labels if name is not None})
    if len(names) < 2:
        raise MmclError(f"{rows.name}: column '{label}' holds {len(names)} class names; at least two are needed")
    vectors, readable, _ = _image_vectors(encoder, rows, image)
    kept = [position for position, row in enumerate(readable) if labels[row] is not None]
    _report(rows, len(rows) - len(kept), "an unreadable picture or no class name")
    number = {name: code for code, name in enumerate(names)}
    codes = [number[str(labels[readable[position]])] for position in kept]
    return zero_shot(vectors[kept], codes, classifier(encoder, names, templates), ks, names=names, bootstrap=bootstrap)


def _image_vectors(encoder: Encodes, rows: Rows, column: str) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Vectors of the readable pictures, the rows they are of, and hashes that are equal for equal pictures."""
    parts, readable, hashes = [], [], []
    with ThreadPoolExecutor(usable_cpus()) as pool, progress("encode images", len(rows), "images") as advance:
        for start in range(0, len(rows), _BLOCK):
            block = range(start, min(start + _BLOCK, len(rows)))
            decoded = list(pool.map(_decode, rows.images(column, block)))
            pictures = [picture for picture in decoded if picture is not None]
            readable += [row for row, picture in zip(block, decoded, strict=True) if picture is not None]
            hashes += [stable_hash(picture.tobytes()) for picture in pictures]
            if pictures:
                parts.append(np.asarray(encoder.encode(pictures), dtype=np.float32))
            advance(len(block))
    if not parts:
        raise MmclError(f"{rows.name}: none of the {len(rows)} pictures in column '{column}' can be read")
    return np.concatenate(parts), readable, np.array(hashes)


def _decode(image: ImageInput | None) -> Image | None:
    try:
        return decode(image)
    except ImageError:
        return None


def _report(rows: Rows, left_out: int, why: str) -> None:
    if left_out == len(rows):
        raise MmclError(f"{rows.name}: every row has {why}")
    if left_out:
        log.warning("%s: %d of %d rows left out: %s", rows.name, left_out, len(rows), why)
