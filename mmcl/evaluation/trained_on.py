"""Whether a model is judged on the rows that it was trained on, as far as it knows what these were."""

from __future__ import annotations

import logging
import re
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path

from mmcl.data.cache.tokens import texts_of
from mmcl.data.identity import stable_hash
from mmcl.data.rows import Rows
from mmcl.data.sources import open_source
from mmcl.data.sources.open import is_registered
from mmcl.data.sources.tar.rows import ShardRows
from mmcl.evaluation.texts import Encodes
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import existing_file, existing_folder

log = logging.getLogger("mmcl")
_NAME = re.compile(r"(?P<source>.+?)(?: \((?P<split>[^()]+)\))?")
_BLOCK = 256  # images in memory
_COMPARED = 100_000  # training rows that are read for it


def warn_of_training_rows(
    encoder: Encodes, rows: Rows | ShardRows, *, image: str | None = None, texts: Sequence[str] = ()
) -> None:
    """Log a warning if ``rows`` are, or are among, what the model was trained on, by the name of its source.

    Rows are the same if their images are: the same bytes, in one file or in several; without images, if their texts
    are. A source that cannot be read here is passed over, and of one with over 100,000 rows all that is compared is
    whether it is the very same.

    Args:
        encoder: the training source stands in its ``card``, if anywhere.
        rows: to be judged on.
        image: the column of images.
        texts: the columns of texts, where there is none of images.
    """
    for name in _training_sources(encoder):
        shared = len(rows) if name == rows.name else 0
        if not shared and isinstance(rows, Rows):
            shared = _shared(name, rows, image, texts)
        _warn(rows.name, shared, len(rows), "rows", name)


def warn_of_training_pairs(encoder: Encodes, where: str, pairs: Sequence[tuple[str, str]], what: str) -> None:
    """Log a warning if ``pairs`` of texts, which messages call ``what``, stand together in rows of what the model was
    trained on."""
    for name in _training_sources(encoder):
        training = _open(name)
        if training is None or len(training) > _COMPARED:
            continue
        rows_of: dict[str, set[int]] = {}
        for column in training.column_names:
            try:
                cells = training.texts(column)
            except MmclError:  # no texts
                continue
            for row, cell in enumerate(cells):
                for text in texts_of(cell):
                    rows_of.setdefault(text, set()).add(row)
        nowhere: set[int] = set()
        shared = sum(not rows_of.get(a, nowhere).isdisjoint(rows_of.get(b, nowhere)) for a, b in pairs if a != b)
        _warn(where, shared, len(pairs), what, name)


def _training_sources(encoder: Encodes) -> list[str]:
    card = getattr(encoder, "card", None)
    data = card.get("data") if isinstance(card, dict) else None
    names = str(data.get("source", "")) if isinstance(data, dict) else ""
    return [name for name in re.split(r" \+ |::", names) if name]


def _warn(where: str, shared: int, total: int, what: str, name: str) -> None:
    if shared:
        log.warning(
            "%s: %d of %d %s stand in what the model was trained on (%s): its numbers are better here than on new ones",
            *(where, shared, total, what, name),
        )


def _shared(name: str, rows: Rows, image: str | None, texts: Sequence[str]) -> int:
    training = _open(name)
    if training is None:
        return 0
    if training.fingerprint == rows.fingerprint:
        return len(rows)
    columns = [image] if image is not None else list(texts)
    if len(training) > _COMPARED or not columns or not set(columns) <= set(training.column_names):
        return 0
    try:
        if image is not None:
            return _shared_images(training, rows, image)
        known = set(_keys(training, texts))
        return sum(key in known for key in _keys(rows, texts))
    except MmclError:  # a column of that name that holds something else
        return 0


def _open(name: str) -> Rows | None:
    """The training rows, if they are here."""
    found = _NAME.fullmatch(name)
    assert found is not None, "a name is not empty"
    for source, split in ((name, None), (found["source"], found["split"])):
        if is_registered(source) or existing_file(source) is not None or existing_folder(source) is not None:
            try:
                return open_source(source, split=split)
            except (MmclError, OSError):
                continue
    return None


def _shared_images(training: Rows, rows: Rows, image: str) -> int:
    """How many images of ``rows`` are the same file or the same bytes as one of ``training``, wherever they lie. Only
    the contents of those are looked at that are as long as one of the others."""
    sizes = {_size(value) for value in _images(training, image)} & {_size(value) for value in _images(rows, image)}
    known = {_content(value) for value in _images(training, image) if _size(value) in sizes}
    return sum(_size(value) in sizes and _content(value) in known for value in _images(rows, image))


def _images(rows: Rows, image: str) -> Iterator[bytes | Path]:
    """Those that there are, a few at a time."""
    for start in range(0, len(rows), _BLOCK):
        for value in rows.images(image, range(start, min(start + _BLOCK, len(rows)))):
            if isinstance(value, bytes) or (value is not None and value.is_file()):
                yield value


def _size(image: bytes | Path) -> int:
    return len(image) if isinstance(image, bytes) else image.stat().st_size


def _content(image: bytes | Path) -> int:
    return stable_hash(image if isinstance(image, bytes) else image.read_bytes())


def _keys(rows: Rows, texts: Sequence[str]) -> list[Hashable]:
    """What each row is; a row without content is like no other."""
    columns = [rows.texts(column) for column in texts]
    return [tuple(str(value) for value in row) if all(row) else object() for row in zip(*columns, strict=True)]
