"""The rows of any source, tables and tar shards alike, in blocks: undecoded images and captions, each row once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mmcl.data.cache.tokens import texts_of
from mmcl.data.images import ImageError
from mmcl.data.rows import Rows
from mmcl.data.sources import open_source
from mmcl.data.sources.tar.columns import ShardColumn, require_columns
from mmcl.data.sources.tar.read import Reachable, Sample, ShardError, read_shard
from mmcl.data.sources.tar.shards import is_shards, list_shards
from mmcl.data.sources.tar.stream import SampleError
from mmcl.runtime.errors import MmclError

_BLOCK = 512
_TEXTS = 8192  # rows at a time where there are no images to decode


class CheckedRow(NamedTuple):
    """A row as it stands in its source; of an image that could not even be read, the reason."""

    name: str
    image: bytes | Path | ImageError | None
    texts: list[str]


class Checked(NamedTuple):
    """A source that can be read once.

    Attributes:
        blocks: the rows.
        total: how many there are, if that is known beforehand.
        has_image: whether they have images.
        has_text: whether they have captions.
        columns: what there is to choose from, in a table.
    """

    blocks: Iterator[list[CheckedRow]]
    total: int | None
    has_image: bool
    has_text: bool
    columns: list[str]


def open_checked(
    source: str | Path,
    split: str | None,
    image: str | None,
    text: str | None,
    damaged: list[dict[str, str]],
    *,
    separator: str | None = None,
    root: str | Path | None = None,
) -> Checked:
    """The rows of a table, a folder or tar shards.

    Args:
        source: where they are.
        split: the part to read.
        image: the column of images; ``image`` if absent, where there is one.
        text: the column of captions; ``text`` if absent, where there is one.
        damaged: shards that cannot be read to their end are added here while the blocks are taken.
        separator: the character between the fields of a CSV file.
        root: the folder that paths of images in a table start from.

    Raises:
        MmclError: the source cannot be read, or lacks a column that was named, or both default ones.
    """
    if is_shards(source):
        if split is not None:
            raise MmclError(f"{source}: tar shards have no splits; leave out split '{split}'")
        if separator is not None or root is not None:
            raise MmclError(f"{source}: a separator and an image root are of tables; leave them out of tar shards")
        return _open_shards(source, image, text, damaged)
    rows = open_source(source, split=split, separator=separator, root=root)
    rows.require(name for name in (image, text) if name is not None)
    image = image or ("image" if "image" in rows.column_names else None)
    text = text or ("text" if "text" in rows.column_names else None)
    if image is None and text is None:
        raise MmclError(
            f"{rows.name}: no column 'image' or 'text'; name which of {', '.join(rows.column_names)} to read with "
            "--image or --text"
        )
    return Checked(_table_blocks(rows, image, text), len(rows), image is not None, text is not None, rows.column_names)


def _table_blocks(rows: Rows, image: str | None, text: str | None) -> Iterator[list[CheckedRow]]:
    size = _BLOCK if image else _TEXTS
    for start in range(0, len(rows), size):
        block = rows.select(range(start, min(start + size, len(rows))))
        images = block.images(image, range(len(block))) if image else [None] * len(block)
        texts = [texts_of(value) for value in block.texts(text)] if text else [[]] * len(block)
        yield [CheckedRow(*row) for row in zip(block.ids(), images, texts, strict=True)]


def _open_shards(source: str | Path, image: str | None, text: str | None, damaged: list[dict[str, str]]) -> Checked:
    shards = list_shards(source)
    columns = {"image": ShardColumn("image", "image", image), "text": ShardColumn("text", "text", text)}
    problems: dict[str, MmclError] = {}
    for role, named in (("image", image), ("text", text)):
        try:
            require_columns(shards, [columns[role]], cure="a column may be made of these")
        except MmclError as error:
            problems[role] = error
            if named is not None or len(problems) == 2:
                raise
    wanted = set().union(*(column.files for role, column in columns.items() if role not in problems))

    def blocks() -> Iterator[list[CheckedRow]]:
        reachable = Reachable()
        for shard in shards:
            block: list[CheckedRow] = []
            try:
                for sample in read_shard(shard, wanted=wanted):
                    reachable.read()
                    block.append(_row_of(sample, columns["image"], columns["text"]))
                    if len(block) == _BLOCK:
                        yield block
                        block = []
            except ShardError as error:  # what came before it counts
                reachable.failed(shard, error)
                damaged.append({"id": error.name, "reason": error.reason})
            yield block

    return Checked(blocks(), None, "image" not in problems, "text" not in problems, [])


def _row_of(sample: Sample, image: ShardColumn, text: ShardColumn) -> CheckedRow:
    """A sample, its image read here: the threads that decode share no open file."""
    found = next((choice.lower() for choice in image.choices if choice.lower() in sample.files), None)
    content: bytes | ImageError | None = None
    if found is not None:
        try:
            content = sample.read(found)
        except ShardError as error:
            content = ImageError(error.reason)
    try:
        texts = text.captions(sample)
    except (SampleError, ShardError):
        texts = []
    return CheckedRow(sample.name, content, texts)
