"""A collection of Milvus that holds vectors, their ids and metadata."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmcl.losses.logits.similarity import Similarity
from mmcl.retrieval.milvus.filters import literal
from mmcl.retrieval.milvus.server import CALL_SECONDS, answers, connected
from mmcl.runtime.errors import MmclError

METRICS = {"cosine": "COSINE", "dot": "IP", "euclidean": "L2"}
MOST = 16_384
"""Results of a query, and queries of a call, that Milvus allows."""
_KEY, _ID, _VECTOR = "pk", "id", "vector"
_INSERT_BYTES = 16 * 2**20
_AT_ONCE = 1_000  # ids in a filter, queries in a call
_LONGEST_TEXT, _LONGEST_LIST = 65_535, 4_096
_RESERVED = {_KEY, _ID, _VECTOR, "and", "or", "not", "in", "like", "is", "null", "true", "false", "exists"}
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STRONG = {"consistency_level": "Strong", "timeout": CALL_SECONDS}  # what has been written is found


def field_names(columns: Sequence[str]) -> dict[str, str]:
    """{column: its field}: of the same name where Milvus allows that."""
    names = {}
    for number, name in enumerate(columns):
        fits = _FIELD.fullmatch(name) and name.lower() not in _RESERVED and len(name) < 255
        names[name] = name if fits else f"column_{number}"
    return names


class Collection:
    """Vectors with ids, which need not be unique, and columns.

    Args:
        uri: of the server.
        name: of the collection.
        schema: ``id`` and the columns, in the types of :mod:`mmcl.retrieval.metadata`.
    """

    def __init__(self, uri: str, name: str, schema: pa.Schema) -> None:
        self.uri, self.name, self.schema = uri, name, schema
        self.fields = {_ID: _ID} | field_names([field for field in schema.names if field != _ID])
        self._client = connected(uri)

    def open(self) -> bool:
        """Have the server load it. False if the server has no such collection."""
        with answers(self.uri):
            if not self._client.has_collection(self.name, timeout=CALL_SECONDS):
                return False
            self._client.load_collection(self.name, timeout=CALL_SECONDS)
        return True

    def create(self, dim: int, similarity: Similarity, kind: str, parameters: dict[str, Any]) -> None:
        """Make it, with an index of this kind over the vectors."""
        from pymilvus import DataType

        schema = self._client.create_schema(auto_id=True, enable_dynamic_field=False)
        schema.add_field(_KEY, DataType.INT64, is_primary=True, auto_id=True)
        schema.add_field(_VECTOR, DataType.FLOAT_VECTOR, dim=dim)
        for column, field in self.fields.items():
            described = _described(self.schema.field(column).type)
            schema.add_field(field, nullable=column != _ID, **described)
        indexes = self._client.prepare_index_params()
        metric = METRICS[similarity]
        indexes.add_index(_VECTOR, index_type=kind, metric_type=metric, params=parameters)
        with answers(self.uri):
            self._client.create_collection(self.name, schema=schema, index_params=indexes, timeout=CALL_SECONDS)

    def drop(self) -> None:
        """Delete it with all it holds."""
        with answers(self.uri):
            self._client.drop_collection(self.name, timeout=CALL_SECONDS)

    def flush(self) -> None:
        """Have everything on the server's disk."""
        with answers(self.uri):
            self._client.flush(self.name, timeout=CALL_SECONDS)

    def count(self) -> int:
        """How many vectors there are."""
        with answers(self.uri):
            return int(self._client.query(self.name, output_fields=["count(*)"], **_STRONG)[0]["count(*)"])

    def insert(self, vectors: np.ndarray, table: pa.Table) -> None:
        """Add (n, D) vectors with their ids and columns; a part of them is there if an error ends this.

        Raises:
            MmclError: a text or a list is longer than Milvus can hold, or the server refuses.
        """
        self._check(table)
        step = max(1, _INSERT_BYTES // (4 * vectors.shape[1] + 200 * table.num_columns))
        for start in range(0, len(vectors), step):
            rows = self._rows(table.slice(start, step))
            for row, vector in zip(rows, vectors[start : start + step], strict=True):
                row[_VECTOR] = vector
            with answers(self.uri):
                self._client.insert(self.name, rows, timeout=CALL_SECONDS)

    def search(
        self, queries: np.ndarray, k: int, similarity: Similarity, where: str = "", *, columns: bool = False
    ) -> Iterator[list[tuple[dict[str, Any], float]]]:
        """For each query, up to k vectors, as the server ranks them: id, or all columns, and distance of each."""
        fields = list(self.fields.values()) if columns else [_ID]
        for start in range(0, len(queries), _AT_ONCE):
            with answers(self.uri):
                found = self._client.search(
                    self.name,
                    data=list(queries[start : start + _AT_ONCE]),
                    anns_field=_VECTOR,
                    filter=where,
                    limit=k,
                    output_fields=fields,
                    search_params={"metric_type": METRICS[similarity], "params": {}},
                    **_STRONG,
                )
            for hits in found:
                yield [(hit["entity"], hit["distance"]) for hit in hits]

    def keys(self, ids: pa.Array) -> list[int]:
        """The keys of all vectors of these ids."""
        return [row[_KEY] for row in self._of(ids, [_KEY])]

    def delete(self, keys: Sequence[int]) -> None:
        """Remove the vectors of these keys."""
        for start in range(0, len(keys), _AT_ONCE):
            with answers(self.uri):
                self._client.delete(self.name, ids=list(keys[start : start + _AT_ONCE]), timeout=CALL_SECONDS)

    def first(self, ids: pa.Array, where: str = "", *, vectors: bool = False) -> dict[Any, dict[str, Any]]:
        """{id: its columns, or its vector}, of several vectors of an id the first, of which a filter is true; without
        ids that there are not."""
        fields = [_VECTOR] if vectors else list(self.fields.values())
        found: dict[Any, dict[str, Any]] = {}
        for row in sorted(self._of(ids, [_KEY, _ID, *fields], where), key=lambda row: row[_KEY]):
            found.setdefault(row[_ID], row)
        return found

    def an_example(self) -> dict[str, Any] | None:
        """Key, id and vector of one vector; None if there is none."""
        with answers(self.uri):
            rows = self._client.query(self.name, limit=1, output_fields=[_KEY, _ID, _VECTOR], **_STRONG)
        return dict(rows[0]) if rows else None

    def _of(self, ids: pa.Array, fields: list[str], where: str = "") -> Iterator[dict[str, Any]]:
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            wanted = ", ".join(literal(value, some.type) for value in some.to_pylist())
            condition = f"{_ID} in [{wanted}]" + (f" and ({where})" if where else "")
            with answers(self.uri):
                yield from self._client.query(self.name, filter=condition, output_fields=fields, **_STRONG)

    def _rows(self, table: pa.Table) -> list[dict[str, Any]]:
        """Rows as Milvus takes them: times as microseconds, not-a-number as nothing."""
        stored = {self.fields[name]: _stored(table[name].combine_chunks()) for name in table.column_names}
        return pa.table(stored).to_pylist()

    def _check(self, table: pa.Table) -> None:
        for name in table.column_names:
            column = table[name].combine_chunks()
            if pa.types.is_large_list(column.type):
                _at_most(pc.list_value_length(column), _LONGEST_LIST, f"column '{name}': a list has", "items")
                column = column.flatten()
            if pa.types.is_large_string(column.type):
                _at_most(pc.binary_length(column), _LONGEST_TEXT, f"column '{name}': a text has", "bytes")


def columns_of(rows: Sequence[dict[str, Any]], collection: Collection) -> pa.Table:
    """What :meth:`Collection.first` found, as a table of the collection's schema."""
    columns = {}
    for name, field in collection.fields.items():
        kind = collection.schema.field(name).type
        values = [
            row.get(field) if row.get(field) is None or not isinstance(kind, pa.LargeListType) else list(row[field])
            for row in rows
        ]
        columns[name] = pa.array(values, _stored_type(kind)).cast(kind)
    return pa.table(columns, schema=pa.schema([(name, column.type) for name, column in columns.items()]))


def _described(kind: pa.DataType) -> dict[str, Any]:
    """The field of Milvus that holds an Arrow type."""
    from pymilvus import DataType

    if pa.types.is_large_list(kind):
        item = _described(kind.value_type)
        return {"datatype": DataType.ARRAY, "element_type": item.pop("datatype"), "max_capacity": _LONGEST_LIST, **item}
    if pa.types.is_large_string(kind):
        return {"datatype": DataType.VARCHAR, "max_length": _LONGEST_TEXT}
    if pa.types.is_boolean(kind):
        return {"datatype": DataType.BOOL}
    return {"datatype": DataType.DOUBLE if pa.types.is_floating(kind) else DataType.INT64}


def _stored_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_list(kind):
        return pa.large_list(_stored_type(kind.value_type))
    return pa.int64() if pa.types.is_timestamp(kind) else kind


def _stored(column: pa.Array) -> pa.Array:
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    return column.cast(_stored_type(column.type))


def _at_most(sizes: pa.Array, most: int, what: str, unit: str) -> None:
    largest = pc.max(sizes).as_py()
    if largest is not None and largest > most:
        raise MmclError(f"{what} {largest:,} {unit}, and Milvus holds {most:,}; shorten it or leave the column out")
