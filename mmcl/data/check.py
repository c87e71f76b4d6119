"""What is in a data set, and what is wrong with it: everything read once, and only hashes and sizes kept."""

from __future__ import annotations

import io
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmcl.data.cache.tokens import Tokenize
from mmcl.data.check_advice import advice_of
from mmcl.data.check_copies import Captions, Items, Names, across, copies, fingerprints, leaks
from mmcl.data.check_rows import Checked, CheckedRow, open_checked
from mmcl.data.identity import stable_hash
from mmcl.data.images import ImageError, decoded, usable_cpus
from mmcl.data.near_copies import image_fingerprint, members, normalised, same
from mmcl.data.sources import open_source
from mmcl.data.sources.files import format_of
from mmcl.data.sources.open import SOURCES, is_registered
from mmcl.data.sources.tar.shards import is_shards
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import existing_file, existing_folder
from mmcl.runtime.progress import progress

_LONG = 2.0  # aspect ratio beyond which a centre crop loses half of the image
_SHOWN = 5


@dataclass(frozen=True)
class Check:
    """What :func:`check_source` found.

    Attributes:
        facts: everything counted, in values that JSON can hold; ``unreadable`` and ``empty`` name each row.
        advice: what is off, a line each.
    """

    facts: dict[str, Any]
    advice: list[str]


class _Look(NamedTuple):
    """An image that can be read. The size is that of the file."""

    width: int
    height: int
    format: str
    mode: str
    transparent: bool
    identity: int
    fingerprint: bytes


@dataclass
class _Tally:
    """What grows while rows are read: a few bytes a row."""

    rows: int = 0
    names: Names = field(default_factory=Names)
    fingerprints: bytearray = field(default_factory=bytearray)
    normalised: array[int] = field(default_factory=lambda: array("q"))
    unreadable: list[dict[str, str]] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    damaged: list[dict[str, str]] = field(default_factory=list)
    widths: array[int] = field(default_factory=lambda: array("q"))
    heights: array[int] = field(default_factory=lambda: array("q"))
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    transparent: int = 0
    images: array[int] = field(default_factory=lambda: array("q"))
    readable: array[int] = field(default_factory=lambda: array("b"))
    captions: array[int] = field(default_factory=lambda: array("q"))
    a_row: array[int] = field(default_factory=lambda: array("q"))
    words: array[int] = field(default_factory=lambda: array("q"))
    characters: array[int] = field(default_factory=lambda: array("q"))
    tokens: array[int] = field(default_factory=lambda: array("q"))
    cut: int = 0
    frequent: _Frequent = field(default_factory=lambda: _Frequent())


class _Frequent:
    """Texts that may be among the most frequent, in bounded memory (lossy counting: Manku and Motwani 2002).

    Every text that makes up more than one in ``capacity`` is among them.
    """

    def __init__(self, capacity: int = 50_000) -> None:
        self.capacity = capacity
        self.counts: Counter[str] = Counter()

    def add(self, texts: Iterable[str]) -> None:
        self.counts.update(texts)
        while len(self.counts) > 2 * self.capacity:
            self.counts = Counter({text: count - 1 for text, count in self.counts.items() if count > 1})


@dataclass(frozen=True)
class Tokens:
    """How the tokens of a caption are counted.

    Attributes:
        tokenize: of the model's text tower.
        limit: tokens at which it cuts.
    """

    tokenize: Tokenize
    limit: int


def check_source(
    source: str | Path,
    *,
    split: str | None = None,
    image: str | None = None,
    text: str | None = None,
    tokens: Tokens | None = None,
    size: int | None = None,
    separator: str | None = None,
    root: str | Path | None = None,
    against: Sequence[str | Path] = (),
    show_progress: bool | None = None,
) -> Check:
    """Read all images and captions of a source once.

    Args:
        source: what ``open_source`` opens, or tar shards.
        split: the part of the source to read.
        image: the column of images; ``image`` if absent, where there is one.
        text: the column of captions; ``text`` if absent, where there is one.
        tokens: how the tokens of captions are counted; they are not if absent.
        size: side that the images will be resized to. JPEGs are then decoded at reduced scale, as in training, which
            is faster; and images that are smaller are counted.
        separator: the character between the fields of a CSV file.
        root: the folder that paths of images in a table start from.
        against: other splits of the source, or other sources, as ``SOURCE`` or ``SOURCE:SPLIT``, such as what a model
            is trained on: rows that stand there too, exactly or nearly, are listed; of images with captions those of
            which both do, and apart from them those whose image alone does.
        show_progress: a bar on stderr; shown for a terminal if absent.

    Raises:
        MmclError: a source cannot be read, or lacks a column that was named, or both default ones.
    """
    table: dict[str, Any] = {"separator": separator, "root": root}
    tokenize, max_tokens = (tokens.tokenize, tokens.limit) if tokens else (None, None)

    def read(
        source: str | Path, split: str | None, tokenize: Tokenize | None = None, doing: str = "check"
    ) -> tuple[_Tally, Checked]:
        tally = _Tally()
        found = open_checked(source, split, image, text, tally.damaged, **table)
        _read(tally, found, str(source), size, tokenize, show_progress, doing)
        return tally, found

    tally, found = read(source, split, tokenize)
    facts = _facts(tally, str(source), found, max_tokens, size)
    if split is None and "split" in found.columns:
        splits = open_source(source, **table).texts("split")
        facts["across_splits"] = _across_splits(str(source), tally, found, splits)
    others = []
    for other in against:
        try:
            theirs, of = read(*_part_of(source, str(other)), doing=f"check {Path(other).name}")
        except MmclError as error:
            raise MmclError(f"against {other}: {error}") from None
        others.append((str(other), theirs, of))
    if others:
        facts["leaks"] = _leaks((str(source), tally, found), others)
    return Check(facts, advice_of(facts))


def _across_splits(source: str, tally: _Tally, found: Checked, splits: Iterable[object]) -> dict[str, Any]:
    """The rows of which several splits have the image, or the caption where there are no images, exactly or nearly."""
    labels = np.unique([str(split) for split in splits], return_inverse=True)[1]
    rows = across((_images if found.has_image else _captions)(tally, source), labels)
    return {"count": sum(map(len, rows)), "rows": rows}


def _part_of(source: str | Path, other: str) -> tuple[str | Path, str | None]:
    """The source and split that ``other`` names: a source; one with a split after a colon; or a split of ``source``."""
    path, _, part = other.rpartition(":")
    if _exists(other) or "://" in other or is_shards(other):
        return other, None
    if is_registered(path) or _exists(path):
        return path, part
    named = "/" in other or path in SOURCES or format_of(Path(other)) is not None
    return (other, None) if named else (source, other)


def _exists(path: str) -> bool:
    return existing_file(path) is not None or existing_folder(path) is not None


def _read(
    tally: _Tally,
    found: Checked,
    source: str,
    size: int | None,
    tokenize: Tokenize | None,
    show_progress: bool | None,
    doing: str,
) -> None:
    """Fill the tally."""
    with ThreadPoolExecutor(usable_cpus()) as pool, progress(doing, found.total, "rows", show_progress) as advance:

        def look(row: CheckedRow) -> _Look | str:
            return _look(row.image, size)

        for block in found.blocks:
            if found.has_image:
                _add_images(tally, block, pool.map(look, block))
            if found.has_text:
                _add_texts(tally, block, tokenize)
            tally.rows += len(block)
            for row in block:
                tally.names.add(row.name)
            advance(len(block))
    if not tally.rows:
        reason = f": {tally.damaged[0]['reason']}" if tally.damaged else ""
        raise MmclError(f"{source}: no sample can be read{reason}")


def _look(image: bytes | Path | ImageError | None, size: int | None) -> _Look | str:
    """What an image is, or why it cannot be read."""
    try:
        if isinstance(image, ImageError):
            raise image
        with decoded(image, target=size) as pixels:
            identity = stable_hash(repr(pixels.size).encode() + pixels.tobytes())
            fingerprint = image_fingerprint(pixels)
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as header:  # type: ignore[arg-type]
            shape, kind, mode = header.size, header.format or "unknown", header.mode
            transparent = header.has_transparency_data
    except ImageError as error:
        return f"{image}: {error}" if isinstance(image, Path) else str(error)
    return _Look(*shape, kind, mode, transparent, identity, fingerprint)


def _add_images(tally: _Tally, block: Sequence[CheckedRow], looks: Iterable[_Look | str]) -> None:
    for row, look in zip(block, looks, strict=True):
        tally.readable.append(isinstance(look, _Look))
        tally.images.append(look.identity if isinstance(look, _Look) else 0)
        if isinstance(look, str):
            tally.unreadable.append({"id": row.name, "reason": look})
            continue
        tally.fingerprints += look.fingerprint
        tally.widths.append(look.width)
        tally.heights.append(look.height)
        tally.formats[look.format] += 1
        tally.modes[look.mode] += 1
        tally.transparent += look.transparent


def _add_texts(tally: _Tally, block: Sequence[CheckedRow], tokenize: Tokenize | None) -> None:
    texts: list[str] = []
    for row in block:
        tally.a_row.append(len(row.texts))
        texts += row.texts
        if not row.texts:
            tally.empty.append(row.name)
    tally.captions.extend(map(stable_hash, texts))
    tally.normalised.extend(stable_hash(normalised(text)) for text in texts)
    tally.words.extend(len(text.split()) for text in texts)
    tally.characters.extend(map(len, texts))
    tally.frequent.add(texts)
    if tokenize is not None:
        tokens, cut = tokenize(texts)
        tally.tokens.extend(map(len, tokens))
        tally.cut += cut


def _facts(tally: _Tally, source: str, found: Checked, max_tokens: int | None, size: int | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"source": source, "rows": tally.rows, "columns": found.columns}
    if tally.damaged:
        facts["damaged_shards"] = tally.damaged
    if found.has_image:
        facts["images"] = _image_facts(tally, size) | copies(_images(tally, source))
    if found.has_text:
        facts["captions"] = _caption_facts(tally, max_tokens) | copies(_captions(tally, source))
    if found.has_image and found.has_text:
        owner = np.repeat(np.arange(tally.rows), _numbers(tally.a_row))
        usable = np.frombuffer(tally.readable, dtype=bool)[owner]
        # Two 64-bit hashes in one: an odd factor keeps the first one's bits apart, and int64 products wrap.
        pairs = (_numbers(tally.images)[owner] * -7046029254386353131 + _numbers(tally.captions))[usable]
        groups = [dict.fromkeys(owner[usable][group].tolist()) for group in members(same(pairs))]
        facts["pairs"] = {
            "count": len(pairs),
            "repeated": len(pairs) - len(np.unique(pairs)),
            "repeated_rows": [[tally.names[row] for row in group] for group in groups],
        }
    return facts


def _images(tally: _Tally, part: str, captioned: bool = False) -> Items:
    rows = np.flatnonzero(np.frombuffer(tally.readable, dtype=bool))
    captions = Captions(np.cumsum(_numbers(tally.a_row)), _numbers(tally.normalised)) if captioned else None
    return Items(part, tally.names, rows, _numbers(tally.images)[rows], fingerprints(tally.fingerprints), captions)


def _captions(tally: _Tally, part: str) -> Items:
    rows = np.repeat(np.arange(tally.rows), _numbers(tally.a_row))
    return Items(part, tally.names, rows, _numbers(tally.captions), _numbers(tally.normalised))


def _leaks(own: tuple[str, _Tally, Checked], others: Sequence[tuple[str, _Tally, Checked]]) -> dict[str, Any]:
    """What stands in other parts too: images, with a caption of theirs where there are any; else texts."""
    kind = "images" if own[2].has_image else "texts"
    if not all(of.has_image if own[2].has_image else of.has_text for _, _, of in others):
        raise MmclError(f"{own[0]}: it has {kind}, which not all that it is to be compared with have")
    captioned = all(of.has_text for _, _, of in (own, *others))
    sides = [
        _images(tally, name, captioned) if own[2].has_image else _captions(tally, name)
        for name, tally, _ in (own, *others)
    ]
    rows = leaks(sides[0], sides[1:])
    if not (own[2].has_image and captioned):
        return {"of": "images" if own[2].has_image else "captions", "count": len(rows), "rows": rows}
    pairs, alone = ([row for row in rows if row["caption"] == agrees] for agrees in (True, False))
    return {"of": "pairs", "count": len(pairs), "rows": pairs, "images": {"count": len(alone), "rows": alone}}


def _image_facts(tally: _Tally, size: int | None) -> dict[str, Any]:
    widths, heights = _numbers(tally.widths), _numbers(tally.heights)
    images = _numbers(tally.images)[np.frombuffer(tally.readable, dtype=bool)]
    shorter = np.minimum(widths, heights)
    ratios = np.maximum(widths, heights) / np.maximum(shorter, 1)
    facts: dict[str, Any] = {
        "readable": len(images),
        "unreadable": tally.unreadable,
        "repeated": len(images) - len(np.unique(images)),
        "width": _spread(widths),
        "height": _spread(heights),
        "longer_to_shorter_side": _spread(ratios),
        "beyond_2_to_1": int((ratios > _LONG).sum()),
        "formats": dict(tally.formats.most_common()),
        "modes": dict(tally.modes.most_common()),
        "transparent": tally.transparent,
    }
    if size is not None:
        facts |= {"size": size, "smaller_than_size": int((shorter < size).sum())}
    return facts


def _caption_facts(tally: _Tally, max_tokens: int | None) -> dict[str, Any]:
    captions = _numbers(tally.captions)
    values, counts = np.unique(captions, return_counts=True)
    facts: dict[str, Any] = {
        "count": len(captions),
        "empty": tally.empty,
        "repeated": len(captions) - len(values),
        "most_frequent": [
            {"text": text, "count": int(counts[np.searchsorted(values, stable_hash(text))])}
            for text, count in tally.frequent.counts.most_common(_SHOWN)
            if count > 1
        ],
        "a_row": _spread(_numbers(tally.a_row)),
        "words": _spread(_numbers(tally.words)),
        "characters": _spread(_numbers(tally.characters)),
    }
    if max_tokens is not None:
        facts |= {"tokens": _spread(_numbers(tally.tokens)), "max_tokens": max_tokens, "cut": tally.cut}
    return facts


def _numbers(values: array[int]) -> np.ndarray:
    return np.frombuffer(values, dtype=np.int64)


def _spread(values: np.ndarray) -> dict[str, float] | None:
    """Smallest, median and largest."""
    if not len(values):
        return None
    found = {"min": values.min(), "median": np.median(values), "max": values.max()}
    return {name: round(float(value), 2) for name, value in found.items()}
