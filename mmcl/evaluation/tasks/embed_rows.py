"""Rows of a table to vectors: images, and images with their captions, without the rows that cannot be used."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmcl.data.cache.tokens import texts_of
from mmcl.data.identity import stable_hash
from mmcl.data.images import ImageError, ImageInput, PreparedImage, decode, usable_cpus
from mmcl.data.rows import ColumnError, Rows
from mmcl.data.sources.tar.rows import ShardRows
from mmcl.evaluation.texts import Encodes, embed_texts, text_identities
from mmcl.runtime.errors import MmclError
from mmcl.runtime.progress import progress

_BLOCK = 64
log = logging.getLogger("mmcl")


@dataclass(frozen=True)
class PairVectors:
    """The images and captions of a table as vectors: N images, T captions, one or several an image."""

    images: np.ndarray  # (N, D) float32
    texts: np.ndarray  # (T, D) float32
    owner: np.ndarray  # (T,) the image of each caption
    hashes: np.ndarray  # (N,) equal for equal images
    captions: list[str]  # T
    same_captions: list[Hashable]  # T, equal for captions that are the same to the model
    row_ids: list[str]  # N, of the images

    @property
    def caption_ids(self) -> list[str]:
        """Row and number of each caption: "17#0" is the first of row 17."""
        number = np.arange(len(self.owner)) - np.searchsorted(self.owner, self.owner)  # captions stand by image
        return [f"{self.row_ids[row]}#{place}" for row, place in zip(self.owner.tolist(), number.tolist(), strict=True)]


def embed_pairs(encoder: Encodes, rows: Rows | ShardRows, *, image: str = "image", text: str = "text") -> PairVectors:
    """Embed the images of a column and the captions of another, one or a list a row.

    Rows with an unreadable image or without a caption are left out, and their number is logged. Images are decoded
    block by block; what is kept is the vectors.

    Raises:
        MmclError: there is no such column, or no usable row.
    """
    rows.require([image, text])
    captions = [texts_of(value) for value in rows.texts(text)]
    vectors, readable, hashes = image_vectors(encoder, rows, image)
    chosen = [place for place, row in enumerate(readable) if captions[row]]
    kept = [readable[place] for place in chosen]
    report_left_out(rows, len(rows) - len(kept), "an unreadable image or no caption")
    flat = [caption for row in kept for caption in captions[row]]
    ids, same = rows.ids(), text_identities(encoder, flat)
    return PairVectors(
        images=vectors[chosen],
        texts=embed_texts(encoder, flat, identities=same),
        owner=np.repeat(np.arange(len(kept)), [len(captions[row]) for row in kept]),
        hashes=hashes[chosen],
        captions=flat,
        same_captions=same,
        row_ids=[ids[row] for row in kept],
    )


def image_vectors(
    encoder: Encodes, rows: Rows | ShardRows, column: str, **options: Any
) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Vectors of the readable images, the rows they are of, and hashes that are equal for equal ones, as the model
    takes them."""
    parts, readable, hashes = [], [], []
    reasons: list[str] = []
    encode: Callable[..., Any] = encoder.encode
    prepare = getattr(encoder, "prepare_image", decode)

    def prepared(image: ImageInput | ImageError | None) -> Any:
        try:
            if image is None or isinstance(image, ImageError):
                raise image or ImageError("there is no image")
            return prepare(image)
        except ImageError as error:
            reasons.append(f"{image}: {error}" if isinstance(image, Path) else str(error))
            return None

    with ThreadPoolExecutor(usable_cpus()) as pool, progress("encode images", len(rows), "images") as advance:
        for start in range(0, len(rows), _BLOCK):
            block = range(start, min(start + _BLOCK, len(rows)))
            found = list(pool.map(prepared, rows.images(column, block)))
            images = [image for image in found if image is not None]
            readable += [row for row, image in zip(block, found, strict=True) if image is not None]
            hashes += [_identity(image) for image in images]
            if images:
                parts.append(np.asarray(encode(images, **options), dtype=np.float32))
            advance(len(block))
    if not parts:
        raise ColumnError(
            f"{rows.name}: none of the {len(rows)} images in column '{column}' can be read, such as {reasons[0]}",
            column,
        )
    return np.concatenate(parts), readable, np.array(hashes)


def _identity(image: Any) -> int:
    return stable_hash((image.pixels if isinstance(image, PreparedImage) else image).tobytes())


def report_left_out(rows: Rows | ShardRows, left_out: int, why: str, of: int | None = None) -> None:
    """Warn of the rows that were left out, ``of`` so many, or of all; raise ``MmclError`` where none is left."""
    count = len(rows) if of is None else of
    if left_out == count:
        raise MmclError(f"{rows.name}: every row has {why}")
    if left_out:
        log.warning("%s: %d of %d rows left out: %s", rows.name, left_out, count, why)


def fingerprint(*content: Sequence[Any]) -> str:
    """Of what was judged, without the pixels, which another version of a JPEG decoder gives slightly differently."""
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()
