"""Which image files have changed since their vectors were stored: by their size and time of modification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

COLUMNS = ("row", "bytes", "modified")
"""What is kept beside the id of an image's vector: its row, and the size and time (in ns) of its file, None if none."""


def state(image: Any) -> tuple[int | None, int | None]:
    """Size and time of modification of an image's file; None for both if it is none, or has gone."""
    if not isinstance(image, Path):
        return None, None
    try:
        status = image.stat()
    except (OSError, ValueError):
        return None, None
    return status.st_size, status.st_mtime_ns


def changed(table: pa.Table, images: Callable[[Sequence[int]], Sequence[Any]]) -> tuple[list[int], list[int]]:
    """Places in a shard whose image has another size or time now, and their rows. Files that are gone do not count.

    Args:
        table: of the shard; without the columns above, as of an older mmcl, nothing is known.
        images: from rows to what the source has there: a path, or something else.
    """
    if not set(COLUMNS) <= set(table.column_names):
        return [], []
    if table["bytes"].null_count == len(table):  # none of them is a file of its own
        return [], []
    rows, *stored = (table[name].to_pylist() for name in COLUMNS)
    found = [state(image) for image in images(rows)]
    places = [
        place
        for place, (now, *then) in enumerate(zip(found, *stored, strict=True))
        if None not in now and None not in then and now != tuple(then)
    ]
    return places, [rows[place] for place in places]
