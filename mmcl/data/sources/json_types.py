"""Arrow types of JSON values: what a column needs to hold all of them, as they are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa

_DEEPEST = 16
_MOST_KEYS = 1000
_EXACT = 2**53  # integers up to here are floating-point numbers as well


class MixedError(ValueError):
    """Values that no column can hold."""


def infer(values: Sequence[Any], depth: int = 0) -> pa.DataType:
    """The type of a column of JSON values.

    Integers among fractions are fractions, any other mixture of single values is text; a single value among lists is
    a list of one. Raises ``MixedError`` where objects stand among other values, or nest or branch without bounds.
    """
    kinds = set(map(type, values)) - {type(None)}
    if dict in kinds:
        if kinds != {dict}:
            raise MixedError("objects and other values in one column")
        return _infer_object([value for value in values if value is not None], depth + 1)
    if list in kinds:
        if depth >= _DEEPEST:
            raise MixedError(f"it is nested more than {_DEEPEST} levels deep")
        lists = (value if isinstance(value, list) else [value] for value in values if value is not None)
        return pa.list_(infer(list(chain.from_iterable(lists)), depth + 1))
    if not kinds:
        return pa.null()
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {float}:
        return pa.float64()
    if kinds == {int}:
        return pa.int64() if all(-(2**63) <= value < 2**63 for value in values if value is not None) else pa.string()
    if kinds == {int, float} and all(abs(value) <= _EXACT for value in values if type(value) is int):
        return pa.float64()
    return pa.string()


def _infer_object(values: Sequence[dict[str, Any]], depth: int) -> pa.DataType:
    if depth > _DEEPEST:
        raise MixedError(f"it is nested more than {_DEEPEST} levels deep")
    keys = keys_of(values)
    if len(keys) > _MOST_KEYS:
        raise MixedError(f"its objects have more than {_MOST_KEYS:,} different keys")
    if any("\0" in key for key in keys):  # where others end a name
        raise MixedError("a key of its objects holds a null character")
    return pa.struct([(key, infer([value.get(key) for value in values], depth)) for key in keys])


def keys_of(values: Iterable[dict[str, Any]]) -> list[str]:
    """All keys of some objects, in the order in which they first stand there."""
    return list(dict.fromkeys(chain.from_iterable(values)))


def unify(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    """The type that holds what ``a`` and ``b`` hold, by the rules of :func:`infer`. Raises ``MixedError``."""
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if pa.types.is_struct(a) or pa.types.is_struct(b):
        if not (pa.types.is_struct(a) and pa.types.is_struct(b)):
            raise MixedError("objects and other values in one column")
        names = list(dict.fromkeys(field.name for field in [*a, *b]))
        if len(names) > _MOST_KEYS:
            raise MixedError(f"its objects have more than {_MOST_KEYS:,} different keys")
        return pa.struct([(name, unify(_member(a, name), _member(b, name))) for name in names])
    if pa.types.is_list(a) or pa.types.is_list(b):
        return pa.list_(unify(*(kind.value_type if pa.types.is_list(kind) else kind for kind in (a, b))))
    numbers = {pa.int64(), pa.float64()}
    return pa.float64() if {a, b} == numbers else pa.string()


def _member(kind: pa.DataType, name: str) -> pa.DataType:
    return kind.field(name).type if kind.get_field_index(name) >= 0 else pa.null()


def to_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """JSON values as an array of a type that :func:`infer` and :func:`unify` found for them.

    Raises ``ValueError`` or ``pa.ArrowException`` for what it cannot hold after all: half a surrogate pair, or an
    integer beyond 2⁵³ among fractions.
    """
    if not pa.types.is_nested(kind):
        try:
            return pa.array(values, kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # a number in a column of text
            pass
    return pa.array([_fit(value, kind) for value in values], kind)


def _fit(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_string(kind):
        return value if isinstance(value, str) else str(value)
    if pa.types.is_list(kind):
        items = value if isinstance(value, list) else [value]
        return [_fit(item, kind.value_type) for item in items]
    if pa.types.is_struct(kind):
        return {field.name: _fit(value.get(field.name), field.type) for field in kind}
    return value
