"""The texts that a tokenizer of a run's own is trained on: of all its training rows, or of a sample of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np

from mmcl.config.schema import Config
from mmcl.data.cache.tokens import texts_of
from mmcl.data.rows import Rows, columns_named_by
from mmcl.data.sources import open_described
from mmcl.data.sources.tar.columns import ShardColumn, require_columns, shard_captions
from mmcl.data.sources.tar.shards import is_shards, list_shards
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")
CHARACTERS = 5_000_000  # half a minute to a minute of training, and of each of 8,000 pieces hundreds of examples
WORD_CHARACTERS = 100_000_000  # words are only counted, and most are rare
_BLOCK = 100  # rows that are taken or left together: few enough that a sample of them is one of all rows


def training_texts(config: Config, roles: Sequence[str], characters: int = CHARACTERS) -> Iterator[str]:
    """The texts of ``roles`` in all training sources, up to so many characters.

    Of more, blocks of rows drawn from all over the tables, the same in every run; of shards, what comes first.

    Raises:
        MmclError: a source cannot be read, or lacks a column.
    """
    sources = [config.data.train, *config.data.mix]
    if is_shards(sources[0].source):
        return _of_shards(config, roles, characters)
    keys = ["data.train", *(f"data.mix.{number}" for number in range(len(config.data.mix)))]
    rows = [open_described(source, config.data.image, key) for source, key in zip(sources, keys, strict=True)]
    columns: list[list[str]] = [[] for _ in sources]
    for role in roles:
        names = [config.data.column_of(role, source) for source in sources]
        there = [name in table.column_names for name, table in zip(names, rows, strict=True)]
        if not any(there):  # what all of the sources need is checked when they are opened to learn from
            with columns_named_by({f"data.columns.{role}": names[0]}):
                rows[0].require(names[:1])
        for number, name in enumerate(names):
            if there[number] and name not in columns[number]:
                columns[number].append(name)
    return _of_tables(list(zip(rows, columns, strict=True)), characters)


def _of_tables(tables: Sequence[tuple[Rows, list[str]]], characters: int) -> Iterator[str]:
    blocks = [(number, start) for number, (rows, _) in enumerate(tables) for start in range(0, len(rows), _BLOCK)]
    kept: dict[int, list[str]] = {}
    read = 0
    for place in np.random.default_rng(0).permutation(len(blocks)).tolist():
        if read >= characters:
            log.info("tokenizer: trained on %.1f million characters, a sample of all training texts", read / 1e6)
            break
        number, start = blocks[place]
        rows, columns = tables[number]
        block = rows.select(range(start, min(start + _BLOCK, len(rows))))
        kept[place] = [text for column in columns for cell in block.texts(column) for text in texts_of(cell)]
        read += sum(map(len, kept[place]))
    for place in sorted(kept):
        yield from kept[place]


def _of_shards(config: Config, roles: Sequence[str], characters: int) -> Iterator[str]:
    sources = [config.data.train, *config.data.mix]
    failures: dict[str, list[MmclError]] = {role: [] for role in roles}
    for source in sources:
        shards = list_shards(source.source)
        for role in roles:
            column = ShardColumn(role, "text", source.columns.get(role, config.data.columns.get(role)))
            read = 0
            try:
                require_columns(shards, [column])
                for text in shard_captions(shards, column):
                    if read >= characters / len(sources) / len(roles):
                        break
                    yield text
                    read += len(text)
            except MmclError as error:  # another source may have the role
                failures[role].append(error)
                if len(failures[role]) == len(sources):
                    raise
