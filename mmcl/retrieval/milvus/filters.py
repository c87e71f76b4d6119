"""Conditions on metadata as Milvus reads them.

What Milvus answers to ``not`` where cells are empty differs between its versions and operators. Here, as in SQL, a
comparison with an empty cell is neither true nor false: ``not`` is moved down to the comparisons, and each of them asks
for a cell that is not empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import pyarrow as pa

from mmcl.retrieval.filters import Comparison, Condition, Joined, Value, checked, comparisons, time_of
from mmcl.runtime.errors import MmclError

_SIGNS = {"=": "==", "!=": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})
_WILD = str.maketrans({"\\": r"\\", "%": r"\%", "_": r"\_"})


def expression(where: str, schema: pa.Schema, fields: Mapping[str, str], *, lite: bool = False) -> str:
    """What ``where`` is in Milvus' own words.

    Args:
        where: a condition, see :mod:`mmcl.retrieval.filters`.
        schema: of the columns.
        fields: {column: name of its field}.
        lite: for Milvus Lite, which beside a list takes an escaped ``%`` or ``_`` of a pattern for a wildcard.

    Raises:
        MmclError: it is no condition, there is no such column, or it is compared with what it cannot be.
    """
    condition = checked(where, schema)
    if lite:
        _refuse_for_lite(condition, schema, where)
    return _translated(condition, schema, fields, True)


def _refuse_for_lite(condition: Condition, schema: pa.Schema, where: str) -> None:
    tests = [test for test in comparisons(condition) if test.kind in ("like", "contains")]
    of_lists = [pa.types.is_large_list(schema.field(test.column).type) for test in tests]
    patterns = [_pattern(test) for test, of_list in zip(tests, of_lists, strict=True) if not of_list]
    if any(of_lists) and any("\\" in pattern for pattern in patterns):
        raise MmclError(f"where: Milvus Lite cannot look for %, _ or \\ in a text and into a list at once: {where}")


def _pattern(test: Comparison) -> str:
    text = str(test.values[0])
    return text if test.kind == "like" else f"%{text.translate(_WILD)}%"


def _translated(condition: Condition, schema: pa.Schema, fields: Mapping[str, str], positive: bool) -> str:
    """What is true where ``condition`` is true, or if not ``positive``, where it is false."""
    if isinstance(condition, Comparison):
        field, kind = fields[condition.column], schema.field(condition.column).type
        if condition.kind == "null":
            return f"({field} is {'null' if positive else 'not null'})"
        test = _test(condition, field, kind)
        return f"({field} is not null and {'' if positive else 'not '}({test}))"
    if isinstance(condition, Joined):
        by = condition.by if positive else {"and": "or", "or": "and"}[condition.by]
        parts = (_translated(part, schema, fields, positive) for part in condition.parts)
        return f"({f' {by} '.join(parts)})"
    return _translated(condition.part, schema, fields, not positive)


def _test(test: Comparison, field: str, kind: pa.DataType) -> str:
    """A comparison with a cell that is not empty."""
    if test.kind == "true":
        return f"{field} == true"
    if test.kind == "contains" and pa.types.is_large_list(kind):
        return _contained(field, test.values[0], kind.value_type)
    if test.kind in ("contains", "like"):
        return f"{field} like {literal(_pattern(test), kind)}"
    if test.kind == "in":
        values = [literal(value, kind) for value in test.values]
        mixed = pa.types.is_boolean(kind) or (pa.types.is_integer(kind) and any("." in value for value in values))
        return " or ".join(f"{field} == {value}" for value in values) if mixed else f"{field} in [{', '.join(values)}]"
    return f"{field} {_SIGNS[test.kind]} {literal(test.values[0], kind)}"


def _contained(field: str, value: Value, kind: pa.DataType) -> str:
    if pa.types.is_integer(kind) and isinstance(value, float) and not value.is_integer():
        return f"array_length({field}) < 0"  # no whole number is a fraction
    value = int(value) if pa.types.is_integer(kind) else value
    return f"array_contains({field}, {literal(value, kind)})"


def literal(value: Value, kind: pa.DataType) -> str:
    """A value as Milvus compares a column of this type with it; of times, the microseconds since 1970."""
    if isinstance(value, bool):
        return str(value).lower()
    if pa.types.is_timestamp(kind) and isinstance(value, str):
        time = time_of(value, kind)
        return str(microseconds(time)) if time is not None else "null"
    if isinstance(value, str):
        return f'"{value.translate(_ESCAPES)}"'
    return repr(float(value)) if pa.types.is_floating(kind) or isinstance(value, float) else str(value)


def microseconds(time: datetime) -> int:
    """Since 1970; of a time without a zone, as if it were in UTC."""
    since = (time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
