"""What the training rows say of the columns of a table tower: their values, their means and deviations."""

from __future__ import annotations

import logging

import numpy as np

from mmcl.config.model import CategoryFieldConfig
from mmcl.config.schema import Config
from mmcl.data.processors.table import Categories, Cells, Numbers
from mmcl.data.rows import ColumnError, Rows, columns_named_by
from mmcl.data.sources import open_described
from mmcl.data.sources.tar.shards import is_shards
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")


class TrainingRows:
    """The rows of all training sources of a config, for what is fitted to their columns.

    Raises:
        MmclError: a source is a stream, or cannot be read.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._sources = [config.data.train, *config.data.mix]
        if streams := [source.source for source in self._sources if is_shards(source.source)]:
            raise MmclError(f"{streams[0]}: towers of modality table need rows of tables, not a stream")
        keys = ["data.train", *(f"data.mix.{number}" for number in range(len(config.data.mix)))]
        self._rows = [open_described(of, config.data.image, key) for of, key in zip(self._sources, keys, strict=True)]

    def fit(self, field: str, section: object) -> Cells:
        """The field of categories or numbers that the column ``field`` makes.

        Raises:
            MmclError: a source has no such column, it holds something else, or no value that could be known.
        """
        tables = [
            (rows, self._config.data.column_of(field, of)) for rows, of in zip(self._rows, self._sources, strict=True)
        ]
        for rows, name in tables:
            with columns_named_by({f"data.columns.{field}": name}):
                rows.require([name])
        if not isinstance(section, CategoryFieldConfig):
            return self._numbers(field, tables)
        if section.buckets is not None:
            return Categories.fit(section, [])
        try:
            fitted = Categories.fit(section, [cell for rows, name in tables for cell in rows.column(name)])
        except ValueError as error:
            raise ColumnError(f"{tables[0][0].name}: column '{tables[0][1]}' holds {error}", tables[0][1]) from None
        if not fitted.vocabulary:
            raise MmclError(
                f"{tables[0][0].name}: column '{tables[0][1]}' has no value in {section.min_count} rows or more; leave "
                "the field out, or lower its min_count"
            )
        return fitted

    def _numbers(self, field: str, tables: list[tuple[Rows, str]]) -> Numbers:
        numbers = np.concatenate([rows.numbers(name) for rows, name in tables])
        if not np.isfinite(numbers).any():
            raise MmclError(
                f"{tables[0][0].name}: column '{tables[0][1]}' holds no number; set the field's kind to category, or "
                "leave it out"
            )
        return Numbers.fit(numbers)
