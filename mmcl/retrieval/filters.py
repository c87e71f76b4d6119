"""Conditions on metadata: ``category = 'shoes' and price < 50``, parsed here and evaluated by pyarrow.

The language is a small part of SQL's::

    condition   comparison, or conditions joined by  and, or, not, ( )
    comparison  column  = != < <= > >=  value
                column  [not] in (value, …)          column  [not] between value and value
                column  [not] like 'a%'              % any characters, _ one of them
                column  [not] contains value         an item of a list, or a part of a text
                column  is [not] null                a column of true and false stands alone: in_stock
    value       'text' ('' is a quote in it), 12, -1.5e3, true, false; a time is text in ISO 8601: '2024-05-01T12:00Z'
    column      a name; "a name" in double quotes where it has other characters than letters, digits and _

Words of the language may be in capitals. As in SQL, a comparison with an empty cell is neither true nor false.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.printable import shortened

Value = str | int | float | bool
_DEEPEST = 100
_NEITHER = pa.scalar(None, pa.bool_())
_WORDS = ("and", "or", "not", "in", "between", "like", "contains", "is", "null", "true", "false")
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?!\w))
    | (?P<text>'(?:[^']|'')*')
    | (?P<name>[^\W\d]\w*)
    | (?P<quoted>"(?:[^"]|"")+")
    | (?P<sign><=|>=|!=|<>|==|[=<>(),])
    )""",
    re.VERBOSE,
)
_COMPARE = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


@dataclass(frozen=True)
class Comparison:
    """A comparison of a column.

    Attributes:
        column: its name.
        kind: ``=``, ``!=``, ``<``, ``<=``, ``>``, ``>=``, ``in``, ``like``, ``contains``, ``null`` or ``true``.
        values: what it is compared with: one value; several of ``in``; none of ``null`` and ``true``.
        at: where the column stands in the text, from 0.
    """

    column: str
    kind: str
    values: tuple[Value, ...] = ()
    at: int = 0


@dataclass(frozen=True)
class Not:
    """What is true where ``part`` is false."""

    part: Condition


@dataclass(frozen=True)
class Joined:
    """Conditions joined by ``and`` or by ``or``."""

    by: Literal["and", "or"]
    parts: tuple[Condition, ...]


Condition = Comparison | Not | Joined


def require_text(where: object) -> None:
    """Raise ``MmclError`` for a condition that is no text, such as an expression of another library."""
    if not isinstance(where, str):
        raise MmclError(f"where is a {type(where).__name__}; a condition is text, such as: price < 50")


def parse(where: str) -> Condition:
    """The condition that a text says.

    Raises:
        MmclError: it is no condition; says where and what was expected there.
    """
    require_text(where)
    return _Parser(where).condition()


def columns_of(condition: Condition) -> Iterator[str]:
    """The names of the columns that a condition asks for."""
    if isinstance(condition, Comparison):
        yield condition.column
    else:
        for part in [condition.part] if isinstance(condition, Not) else condition.parts:
            yield from columns_of(part)


def checked(where: str, schema: pa.Schema) -> Condition:
    """The condition that a text says, of columns that there are and that can be compared so.

    Raises:
        MmclError: it is no condition, there is no such column, or it is compared with what it cannot be.
    """
    condition = parse(where)
    for test in comparisons(condition):
        _check(test, schema, where)
    return condition


def matching(table: pa.Table, where: str) -> np.ndarray:
    """Which rows of ``table`` a condition is true of: (N,) bool.

    Raises:
        MmclError: it is no condition, there is no such column, or it is compared with what it cannot be.
    """
    found = _evaluated(checked(where, table.schema), table, where)
    return np.asarray(pc.fill_null(found, False).to_numpy(zero_copy_only=False), dtype=bool)


def comparisons(condition: Condition) -> Iterator[Comparison]:
    """Its comparisons, from left to right."""
    if isinstance(condition, Comparison):
        yield condition
    else:
        for part in [condition.part] if isinstance(condition, Not) else condition.parts:
            yield from comparisons(part)


class _Parser:
    """Recursive descent: a method for each line of the grammar."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str, int]] = []  # kind, content, place
        place, end = 0, len(text.rstrip())
        while place < end:
            if (match := _TOKEN.match(text, place)) is None:
                start = place + len(text[place:]) - len(text[place:].lstrip())
                quote = text[start] in "'\""
                fail(text, start, "a text that does not end" if quote else "a character that means nothing here")
            kind = str(match.lastgroup)
            content, place = match[kind], match.end()
            if kind == "name" and content.lower() in _WORDS:
                kind, content = "word", content.lower()
            self.tokens.append((kind, content, match.start(match.lastgroup or 0)))
        self.tokens.append(("end", "", len(text)))
        self.next = 0
        self.depth = 0

    def condition(self) -> Condition:
        """The condition that all of the text states."""
        if len(self.tokens) == 1:
            raise MmclError("where: the condition is empty; such as: category = 'shoes' and price < 50")
        condition = self.joined("or")
        if self.tokens[self.next][0] != "end":
            self.expected("'and', 'or' or the end")
        return condition

    def joined(self, by: Literal["and", "or"]) -> Condition:
        one = (lambda: self.joined("and")) if by == "or" else self.negated
        parts = [one()]
        while self.take("word", by):
            parts.append(one())
        return parts[0] if len(parts) == 1 else Joined(by, tuple(parts))

    def negated(self) -> Condition:
        self.depth += 1
        if self.depth > _DEEPEST:
            self.expected(f"no more than {_DEEPEST} conditions in each other")
        if self.take("word", "not"):
            condition: Condition = Not(self.negated())
        elif self.take("sign", "("):
            condition = self.joined("or")
            self.take("sign", ")") or self.expected("')'")
        else:
            condition = self.test()
        self.depth -= 1
        return condition

    def test(self) -> Condition:
        kind, content, at = self.tokens[self.next]
        if kind not in ("name", "quoted"):
            self.expected("the name of a column")
        self.next += 1
        column = content[1:-1].replace('""', '"') if kind == "quoted" else content
        if (sign := self.take("sign", *_COMPARE, "<>", "==")) is not None:
            return Comparison(column, {"<>": "!=", "==": "="}.get(sign, sign), (self.value(),), at)
        if self.take("word", "is"):
            negated = self.take("word", "not")
            self.take("word", "null") or self.expected("'null'")
            return self._perhaps_not(negated, Comparison(column, "null", (), at))
        negated = self.take("word", "not")
        how = self.take("word", "in", "between", "like", "contains")
        if how == "in":
            return self._perhaps_not(negated, Comparison(column, "in", self.values(), at))
        if how == "between":
            low = Comparison(column, ">=", (self.value(),), at)
            self.take("word", "and") or self.expected("'and'")
            return self._perhaps_not(negated, Joined("and", (low, Comparison(column, "<=", (self.value(),), at))))
        if how is not None:
            return self._perhaps_not(negated, Comparison(column, how, (self.value(),), at))
        follows, content, _ = self.tokens[self.next]
        if negated is not None or (follows not in ("end", "word") and content != ")"):
            self.expected("a comparison: =, !=, <, <=, >, >=, in, between, like, contains or is null")
        return Comparison(column, "true", (), at)

    def values(self) -> tuple[Value, ...]:
        self.take("sign", "(") or self.expected("'(' and a list of values")
        found = [self.value()]
        while self.take("sign", ","):
            found.append(self.value())
        self.take("sign", ")") or self.expected("',' or ')'")
        return tuple(found)

    def value(self) -> Value:
        kind, content, _ = self.tokens[self.next]
        if kind == "word" and content == "null":
            self.expected("a value; what is empty is found by 'is null'")
        if not (kind in ("number", "text") or (kind == "word" and content in ("true", "false"))):
            self.expected("a value: 'text' in single quotes, a number, true or false")
        self.next += 1
        if kind == "text":
            return content[1:-1].replace("''", "'")
        if kind == "word":
            return content == "true"
        number = float(content)
        return int(content) if content.lstrip("+-").isdigit() and abs(number) < 2**63 else number

    def take(self, kind: str, *contents: str) -> str | None:
        """The next token's content if it is one of these; None if it is another."""
        found, content, _ = self.tokens[self.next]
        if found != kind or content not in contents:
            return None
        self.next += 1
        return content

    def expected(self, what: str) -> NoReturn:
        fail(self.text, self.tokens[self.next][2], f"expected {what}")

    @staticmethod
    def _perhaps_not(negated: str | None, condition: Condition) -> Condition:
        return Not(condition) if negated else condition


def fail(where: str, at: int, what: str) -> NoReturn:
    """Raise ``MmclError`` about a place in a condition."""
    rest = where[at:].strip()
    here = f"at character {at + 1}, '{shortened(rest, 30)}'" if rest else "at its end"
    raise MmclError(f"where: {here}: {what}; in: {shortened(where.strip(), 200)}")


def _check(test: Comparison, schema: pa.Schema, where: str) -> None:
    """Raise ``MmclError`` unless the column is there and can be compared so."""
    if test.column not in schema.names:
        hint = nearest(test.column, schema.names)
        fail(where, test.at, f"there is no column '{test.column}'; {hint}")
    held = schema.field(test.column).type
    kind = kind_of(held)
    if test.kind == "null":
        return
    if test.kind == "true":
        if kind != "true or false":
            fail(where, test.at, f"column '{test.column}' holds {kind}; compare it with something")
        return
    if test.kind == "contains" and pa.types.is_large_list(held):
        kind = kind_of(held.value_type)
    elif pa.types.is_large_list(held):
        fail(where, test.at, f"column '{test.column}' holds {kind}; ask with: {test.column} contains VALUE")
    elif test.kind in ("like", "contains") and kind != "text":
        fail(where, test.at, f"column '{test.column}' holds {kind}; '{test.kind}' is for text" + _and_lists(test.kind))
    for value in test.values:
        fits = {
            "text": isinstance(value, str),
            "numbers": isinstance(value, int | float) and not isinstance(value, bool),
            "true or false": isinstance(value, bool) and test.kind in ("=", "!=", "in", "contains"),
            "times": isinstance(value, str) and time_of(value, held) is not None,
        }[kind]
        if not fits:
            so = {
                "text": "'text' in single quotes",
                "numbers": "a number",
                "times": "a time such as '2024-05-01T12:00'",
            }
            shown = repr(value) if not isinstance(value, bool) else str(value).lower()
            fail(
                where, test.at, f"column '{test.column}' holds {kind_of(held)}, and {shown} is not {so.get(kind, kind)}"
            )


def _and_lists(kind: str) -> str:
    return " and lists" if kind == "contains" else ""


def kind_of(held: pa.DataType) -> str:
    """What messages say that a column of this type holds."""
    if pa.types.is_large_list(held):
        return f"lists of {kind_of(held.value_type)}"
    if pa.types.is_boolean(held):
        return "true or false"
    if pa.types.is_timestamp(held):
        return "times"
    return "numbers" if pa.types.is_integer(held) or pa.types.is_floating(held) else "text"


def time_of(text: str, held: pa.DataType) -> datetime | None:
    """A time in ISO 8601, in UTC where none is said; None for what is none."""
    try:
        time = datetime.fromisoformat(text)
        time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):  # in UTC it may be before the year 1
        return None
    return time if pa.types.is_timestamp(held) and held.tz is not None else time.replace(tzinfo=None)


def _evaluated(condition: Condition, table: pa.Table, where: str) -> Any:
    """A boolean array of N, null where the condition is neither true nor false."""
    if isinstance(condition, Not):
        return pc.invert(_evaluated(condition.part, table, where))
    if isinstance(condition, Joined):
        join = pc.and_kleene if condition.by == "and" else pc.or_kleene
        found = _evaluated(condition.parts[0], table, where)
        for part in condition.parts[1:]:
            found = join(found, _evaluated(part, table, where))
        return found
    column = table[condition.column].combine_chunks()
    if condition.kind == "true":
        return column
    if condition.kind == "null":
        return pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))
    if condition.kind == "like":
        return pc.match_like(column, pattern=str(condition.values[0]))
    if condition.kind == "contains" and not pa.types.is_large_list(column.type):
        return pc.match_substring(column, pattern=str(condition.values[0]))
    if condition.kind == "contains":
        return _some_item(column, condition.values)
    if condition.kind == "in":
        return pc.if_else(pc.is_valid(column), _equal_to_one(column, condition.values), _NEITHER)
    return _COMPARE[condition.kind](column, _scalars(condition.values, column.type)[0])


def _some_item(lists: pa.Array, values: Sequence[Value]) -> Any:
    """Whether an item of each list equals one of ``values``; null of a list that is missing."""
    items = pc.list_flatten(lists)
    of = pc.list_parent_indices(lists)
    found = np.zeros(len(lists), dtype=bool)
    found[of.filter(pc.fill_null(_equal_to_one(items, values), False)).to_numpy()] = True
    return pc.if_else(pc.is_valid(lists), pa.array(found), _NEITHER)


def _equal_to_one(column: pa.Array, values: Sequence[Value]) -> Any:
    scalars = _scalars(values, column.type)
    if pa.types.is_integer(column.type) and any(isinstance(value, float) for value in values):
        column = pc.cast(column, pa.float64(), safe=False)
    kind = column.type
    return pc.is_in(column, value_set=pa.array([scalar.as_py() for scalar in scalars], kind))


def _scalars(values: Sequence[Value], held: pa.DataType) -> list[pa.Scalar]:
    """Values as the column's type has them; whole numbers and others as they are."""
    if pa.types.is_timestamp(held):
        return [pa.scalar(time_of(str(value), held), held) for value in values]
    if kind_of(held) == "numbers":
        return [pa.scalar(value, pa.float64() if isinstance(value, float) else pa.int64()) for value in values]
    return [pa.scalar(value, held) for value in values]
