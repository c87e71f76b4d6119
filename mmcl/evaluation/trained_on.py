"""Whether a model is judged on the rows that it was trained on, as far as it knows what these were."""

from __future__ import annotations

import logging
import re
from collections.abc import Hashable, Sequence
from pathlib import Path

from mmcl.data.identity import stable_hash
from mmcl.data.rows import Rows
from mmcl.data.shard_rows import ShardRows
from mmcl.data.sources import open_source
from mmcl.data.tokens import texts_of
from mmcl.evaluation.texts import Encodes
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import existing_file, existing_folder

log = logging.getLogger("mmcl")
_NAME = re.compile(r"(?P<source>.+?)(?: \((?P<split>[^()]+)\))?")
_COMPARED = 100_000  # training rows that are read for it


def warn_of_training_rows(
    encoder: Encodes, rows: Rows | ShardRows, *, image: str | None = None, texts: Sequence[str] = ()
) -> None:
    """Log a warning if ``rows`` are, or are among, what the model was trained on, by the name of its source.

    Rows are the same if their images are: the same file, or the same bytes; without images, if their texts are. A
    source that cannot be read here is passed over, and of one with over 100,000 rows it is only told whether it is the
    very same.

    Args:
        encoder: one that knows its training source is told by its ``card``.
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
        known = set(_keys(training, image, texts))
        return sum(key in known for key in _keys(rows, image, texts))
    except MmclError:  # a column of that name that holds something else
        return 0


def _open(name: str) -> Rows | None:
    """The training rows, if they are here."""
    found = _NAME.fullmatch(name)
    assert found is not None, "a name is not empty"
    for source, split in ((name, None), (found["source"], found["split"])):
        if source.startswith("sample:") or existing_file(source) is not None or existing_folder(source) is not None:
            try:
                return open_source(source, split=split)
            except (MmclError, OSError):
                continue
    return None


def _keys(rows: Rows, image: str | None, texts: Sequence[str]) -> list[Hashable]:
    """What each row is; a row without content is like no other."""
    if image is not None:
        images = rows.images(image, range(len(rows)))
        return [_image_key(value) if value is not None else object() for value in images]
    columns = [rows.texts(column) for column in texts]
    return [tuple(str(value) for value in row) if all(row) else object() for row in zip(*columns, strict=True)]


def _image_key(value: bytes | Path) -> Hashable:
    return stable_hash(value) if isinstance(value, bytes) else str(value.resolve())
