"""What an index keeps beside its vectors: ids, labels and other columns, a row for every position."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmcl.data.rows import Rows
from mmcl.encoding.corpora.stored import id_array, id_table
from mmcl.retrieval.filters import kind_of, matching
from mmcl.retrieval.index import Ids, MetaColumns, VectorShards
from mmcl.retrieval.lookup import IdLookup
from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.printable import short_repr

log = logging.getLogger("mmcl")
_KINDS = "text, numbers, true or false, times, or lists of these"
_OWN = ("id", "label")  # may be given as columns, but are no others
_WHOLE = 2**53  # up to it, float64 holds all whole numbers


class Metadata:
    """Ids and other columns, a row for every position of an index. Never changed: what changes it returns another.

    Args:
        table: (N,) with the column ``id``, perhaps ``label``, and others, as :func:`column_table` makes them.
        removed: (N,) bool, rows whose vectors are still in the index but are not to be found; None: there are none.
        lookup: of the same ids, if there is one already.
    """

    def __init__(self, table: pa.Table, removed: np.ndarray | None = None, lookup: IdLookup | None = None) -> None:
        self.table = table.combine_chunks()
        self.removed = removed if removed is not None and removed.any() else None
        self.count = len(table) - (0 if self.removed is None else int(self.removed.sum()))
        column = self.table["id"]
        # combine_chunks() would copy the only chunk that there is; a table without rows has none.
        self.ids: pa.Array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        """(N,) int64 or string."""
        self._lookup = IdLookup(self.ids) if lookup is None else lookup

    @property
    def kind(self) -> str:
        """What the ids are: ``int`` or ``string``."""
        return "int" if pa.types.is_integer(self.table.schema.field("id").type) else "string"

    @property
    def columns(self) -> list[str]:
        """The names of the columns that are neither id nor label."""
        return [name for name in self.table.column_names if name not in _OWN]

    def positions(self, ids: Ids, where: str | None = None) -> np.ndarray:
        """(n,) int64: the first vector of each id whose row fulfils a condition; -1 of one that there is not."""
        wanted = self.wanted(ids)
        found = self._where(wanted)
        if where is not None:
            found = found[matching(self.table.take(pa.array(found)), where)]
        place = pc.index_in(wanted, value_set=self.ids.take(pa.array(found)))
        missing = place.is_null().to_numpy(zero_copy_only=False)
        if not len(found):
            return np.full(len(wanted), -1)
        return np.where(missing, -1, found[pc.fill_null(place, 0).to_numpy()])

    def known(self, ids: Ids, where: str | None = None) -> np.ndarray:
        """As :meth:`positions`. Raises ``MmclError`` for an unknown id."""
        found = self.positions(ids, where)
        if len(unknown := np.flatnonzero(found < 0)):
            id_ = self.wanted(ids)[int(unknown[0])].as_py()
            more = f" ({len(unknown):,} such ids)" if len(unknown) > 1 else ""
            example = next((value.as_py() for value in self.live()["id"][:1]), None)
            if where is not None:
                raise MmclError(f"no vector of id {id_!r} fulfils: {where}{more}")
            raise MmclError(f"the index holds no id {id_!r}{more}; it has such as {example!r}")
        return found

    def at(self, positions: np.ndarray) -> pa.Table:
        """The rows at these positions, (n,); an empty one for -1."""
        return self.table.take(pa.array(positions, mask=positions < 0))

    def every(self, ids: Ids) -> np.ndarray:
        """Sorted positions of all vectors of these ids, of which there need be none."""
        return self._where(self.wanted(ids))

    def live(self) -> pa.Table:
        """The rows that are not removed."""
        return self.table if self.removed is None else self.table.filter(pa.array(~self.removed))

    def added(self, table: pa.Table) -> Metadata:
        """With the rows of ``table``, which :meth:`fitting` gave, behind those that are there."""
        removed = None if self.removed is None else np.concatenate([self.removed, np.zeros(len(table), bool)])
        return Metadata(pa.concat_tables([self.table.cast(table.schema), table]), removed)

    def marked(self, positions: np.ndarray) -> Metadata:
        """With the rows at these positions removed, though their places remain."""
        removed = np.zeros(len(self.table), bool) if self.removed is None else self.removed.copy()
        removed[positions] = True
        return Metadata(self.table, removed, self._lookup)

    def fitting(self, ids: Ids, count: int, columns: MetaColumns | None) -> pa.Table:
        """Ids and columns of ``count`` new vectors, with the names and types of those that are there. Where these are
        whole numbers and the new ones have fractions, the column is of fractions from now on. A label may be missing.

        Raises:
            MmclError: another number of them, ids of the other type, or columns that are missing, unknown or of
                another type.
        """
        table = with_columns(id_table(ids, count), columns)
        schema = self.table.schema
        if table.schema.field("id").type != schema.field("id").type and count:
            of = {"int": "whole numbers", "string": "text"}
            raise MmclError(
                f"the ids are {of[Metadata(table).kind]}, those of the index {of[self.kind]}; give such ids"
            )
        if extra := [name for name in table.column_names if name not in (*schema.names, "label")]:
            hint = nearest(extra[0], self.columns)
            raise MmclError(f"the index has no column '{extra[0]}'; {hint or 'build it anew with this column'}")
        if missing := [name for name in self.columns if name not in table.column_names]:
            raise MmclError(f"the index has a column '{missing[0]}'; give its values too (--from), or None for each")
        return pa.table({name: self._like(table, name) for name in schema.names})

    def _like(self, table: pa.Table, name: str) -> pa.Array:
        """A column of ``table`` as the column of this name here is."""
        held = self.table.schema.field(name).type
        if name not in table.column_names or table[name].null_count == len(table):
            return pa.nulls(len(table), held)
        column = table[name].combine_chunks()
        if held == pa.int64() and pa.types.is_floating(column.type):
            try:
                return column.cast(held)
            except pa.ArrowInvalid:  # it has fractions
                if (pc.max(pc.abs(self.table[name])).as_py() or 0) <= _WHOLE:
                    return column
        widened = pa.types.is_floating(held) and pa.types.is_integer(column.type)
        if column.type == held or widened or (pa.types.is_timestamp(held) and pa.types.is_timestamp(column.type)):
            return column.cast(held)  # a time without a zone is in UTC, as one that a condition names
        here, new = kind_of(held), kind_of(column.type)
        if here == new:
            here, new = f"{here} ({held})", f"{new} ({column.type})"
        raise MmclError(f"column '{name}' of the index holds {here}, and the new values are {new}")

    def wanted(self, ids: Ids) -> pa.Array:
        """Ids as those of the index are. Raises ``MmclError`` if they cannot be."""
        wanted = id_array(ids)
        held = self.table.schema.field("id").type
        try:
            return wanted.cast(held)
        except pa.ArrowInvalid:
            other = next(one.as_py() for one in wanted if not _casts(one, held))
            raise MmclError(f"the ids of the index are whole numbers, unlike {short_repr(other, 40)}") from None

    def _where(self, wanted: pa.Array) -> np.ndarray:
        found = self._lookup.every(wanted)
        return found if self.removed is None else found[~self.removed[found]]


def _casts(value: pa.Scalar, kind: pa.DataType) -> bool:
    try:
        value.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def with_columns(table: pa.Table, columns: MetaColumns | None) -> pa.Table:
    """A table of N ids with columns of metadata, of which those of the same name are replaced.

    Text, whole and other numbers, booleans, times and lists of these are kept, as ``large_string``, ``int64``,
    ``float64``, ``bool``, ``timestamp[us]`` (in UTC where a time zone is known) and ``large_list``. A number that is
    NaN is empty, as pandas writes what is missing.

    Raises:
        MmclError: a column of another length, or of something else.
    """
    given = (
        {}
        if columns is None
        else dict(zip(columns.column_names, columns.columns, strict=True))
        if isinstance(columns, pa.Table)
        else dict(columns)
    )
    for name, values in given.items():
        if name == "id":
            raise MmclError("a column of metadata cannot be called 'id', which the ids are; name it otherwise")
        array = _array(str(name), values)
        if len(array) != len(table):
            raise MmclError(f"{len(array):,} values of column '{name}' for {len(table):,} vectors; give one for each")
        if name == "label" and not pa.types.is_large_string(array.type):
            array = array.cast(pa.large_string())
        place = table.schema.get_field_index(name)
        table = table.append_column(name, array) if place < 0 else table.set_column(place, name, array)
    return table


def source_columns(
    rows: Rows, names: Sequence[str], ids: pa.Array | pa.ChunkedArray, id_column: str | None = None
) -> pa.Table:
    """Columns of a source, for the vectors of these ids, each from the row of its id; empty where there is no such row.

    Args:
        rows: the source.
        names: of the columns; ``price:number``, ``added:time`` and ``code:text`` say what a column is to be read as,
            since all that a CSV file holds is text.
        ids: of the vectors.
        id_column: of the ids in the source; ``id`` or ``_id``, else the numbers of the rows.

    Raises:
        MmclError: no such column, no id of the vectors in the source, or a cell that cannot be read so.
    """
    wanted = [_named(name) for name in names]
    rows.require([name for name, _ in wanted])
    of = pc.index_in(ids.cast(pa.large_string()), value_set=pa.array(rows.ids(id_column), pa.large_string()))
    if of.null_count == len(of):
        raise MmclError(
            f"{rows.name}: none of its ids is one of the vectors', such as {ids[0].as_py()!r}; name the column of ids"
        )
    if of.null_count:
        log.warning(f"{rows.name}: {of.null_count:,} of {len(of):,} vectors have no row there; their columns are empty")
    table = {}
    for name, kind in wanted:
        cells = [None if cell == "" and kind else cell for cell in rows.column(name)]
        values = [_READ[kind](cell, rows.name, name) for cell in cells] if kind else cells
        typed = pa.nulls(len(values), _EMPTY[kind]) if kind and not any(v is not None for v in values) else values
        table[name] = _array(name, typed).take(of)
    return pa.table(table)


def columns_to_add(
    kinds: Mapping[str, str], stored: VectorShards, rows: Rows | None = None, id_column: str | None = None
) -> pa.Table:
    """Labels and columns of vectors that are to be added to an index.

    Args:
        kinds: the index's columns, each with what it holds, as ``info()["columns"]`` says.
        stored: the vectors, with their ids.
        rows: the source of the columns that the vectors do not have themselves.
        id_column: see :func:`source_columns`.
    """
    table = stored.table()
    if rows is not None:
        missing = {name: _READ_AS.get(kind) for name, kind in kinds.items() if name not in table.column_names}
        names = [name if read is None else f"{name}:{read}" for name, read in missing.items()]
        table = with_columns(table, source_columns(rows, names, table["id"], id_column))
    return table.drop_columns(["id"])


def _named(name: str) -> tuple[str, str]:
    column, _, kind = name.rpartition(":")
    return (column, kind) if column and kind in _READ else (name, "")


def _text(cell: Any, source: str, name: str) -> str | None:
    return None if cell is None else str(cell)


def _number(cell: Any, source: str, name: str) -> int | float | None:
    try:
        if cell is None or isinstance(cell, int | float):
            return cell
        return int(cell) if cell.strip().lstrip("+-").isdigit() else float(cell)
    except (ValueError, AttributeError):
        raise MmclError(f"{source}: column '{name}' holds {short_repr(cell, 40)}, which is no number") from None


def _time(cell: Any, source: str, name: str) -> datetime | None:
    try:
        return cell if cell is None or isinstance(cell, datetime) else datetime.fromisoformat(cell.strip())
    except (ValueError, AttributeError):
        raise MmclError(
            f"{source}: column '{name}' holds {short_repr(cell, 40)}, no time as 2024-05-01T12:00"
        ) from None


_READ = {"text": _text, "number": _number, "time": _time}
_READ_AS = {"text": "text", "numbers": "number", "times": "time"}
_EMPTY = {"text": pa.large_string(), "number": pa.int64(), "time": pa.timestamp("us")}  # of a column without values


def _array(name: str, values: Any) -> pa.Array:
    """A column of metadata as the index keeps it."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    try:
        array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
        array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
        array = array.cast(_kept_as(array.type))
        return pc.if_else(pc.is_nan(array), None, array) if pa.types.is_floating(array.type) else array
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise MmclError(f"column '{name}' must hold {_KINDS} ({str(error).splitlines()[0]:.200})") from None


def _kept_as(given: pa.DataType) -> pa.DataType:
    types = pa.types
    if types.is_dictionary(given):
        return _kept_as(given.value_type)
    if types.is_list(given) or types.is_large_list(given) or types.is_fixed_size_list(given):
        return pa.large_list(_kept_as(given.value_type))
    if types.is_integer(given):
        return pa.int64()
    if types.is_floating(given) or types.is_decimal(given):
        return pa.float64()
    if types.is_timestamp(given):
        return pa.timestamp("us", "UTC" if given.tz is not None else None)
    if types.is_date(given):
        return pa.timestamp("us")
    if types.is_boolean(given):
        return given
    if types.is_string(given) or types.is_large_string(given) or types.is_string_view(given) or types.is_null(given):
        return pa.large_string()
    raise TypeError(f"not {given}")
