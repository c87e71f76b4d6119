"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mmcl.data.sources.files import path_text
from mmcl.runtime.errors import MmclError

_BLOCK = 1000


class ParquetFiles:
    """Parquet files with the same columns. Types that differ are widened where no value changes."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self.notes: list[str] = []
        self.unreadable: dict[str, str] = {}

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, in the order of the files."""
        schema = self._schema()
        for file in self.files:
            try:
                with file.open("rb") as opened:
                    parquet = pq.ParquetFile(opened)
                    for batch in parquet.iter_batches(_BLOCK, columns=schema.names):
                        yield self._cast(batch, schema)
            except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
                raise _damaged(file, error) from error

    def _schema(self) -> pa.Schema:
        """What all files are cast to; columns that have no type in common, or none that is supported, are noted."""
        schemas = []
        for file in self.files:
            try:
                with file.open("rb") as opened:
                    schemas.append(pq.ParquetFile(opened).schema_arrow)
            except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
                raise _damaged(file, error) from error
        names = list(dict.fromkeys(schemas[0].names))
        if len(names) < len(schemas[0].names):
            twice = next(name for name in names if schemas[0].names.count(name) > 1)
            raise MmclError(f"{path_text(self.files[0])}: two columns are called {twice!r}; rename one")
        for file, schema in zip(self.files, schemas, strict=True):
            if sorted(schema.names) != sorted(names):
                odd = sorted(set(schema.names) ^ set(names))[0]
                raise MmclError(
                    f"{path_text(file)}: its columns differ from those of {self.files[0].name}, "
                    f"such as {odd!r}; give the files the same columns"
                )
        fields = []
        for name in names:
            try:
                fields.append(_common([schema.field(name) for schema in schemas]))
            except (pa.ArrowException, ValueError, NotImplementedError) as error:
                self.unreadable[name] = " ".join(str(error).split())
        return pa.schema(fields, metadata=_metadata(schemas[0]))

    def _cast(self, batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
        arrays = [batch.column(field.name) for field in schema]
        arrays = [
            array if array.type == field.type else array.cast(field.type)
            for array, field in zip(arrays, schema, strict=True)
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _common(fields: Sequence[pa.Field]) -> pa.Field:
    """The field that holds the values of all of them, categories as what they stand for."""
    import datasets

    plain = [field.with_type(_plain(field.type)).with_nullable(True) for field in fields]
    common = pa.unify_schemas([pa.schema([field]) for field in plain], promote_options="permissive").field(0)
    datasets.Features.from_arrow_schema(pa.schema([common]))  # what it does not know, rows cannot hold
    return common


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _metadata(schema: pa.Schema) -> dict[bytes, bytes] | None:
    """What `datasets` says of its features, if it can read that again."""
    import datasets

    try:
        datasets.Features.from_arrow_schema(schema)
    except Exception:
        return None
    return schema.metadata


def _damaged(file: Path, error: Exception) -> MmclError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return MmclError(f"{path_text(file)}: cannot be read: {reason[:300]}")
