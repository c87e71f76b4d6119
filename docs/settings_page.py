"""The page of settings: each with its type, default and meaning, read from the models that check a config."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import Tag
from pydantic.fields import FieldInfo

from mmcl.config import Config
from mmcl.config.by_name import ByName
from mmcl.config.section import Section

_PLAIN = {str: "text", int: "integer", float: "number", bool: "true or false", types.NoneType: "null", Any: "any value"}
_SIGNS = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}
_NO_LIMIT = 1e15
"""A larger bound only keeps absurd numbers out."""


def settings_page() -> str:
    """Markdown: a heading for every section, and below it a definition list of its settings."""
    return "\n\n".join(_Page().section("", Config, 1))


class _Page:
    """Sections in the order of the config, each class of settings described where it comes first."""

    def __init__(self) -> None:
        self.places: dict[type[Section], str] = {}

    def section(self, path: str, kind: type[Section], level: int, title: str = "") -> Iterator[str]:
        """The parts of a section and of those inside it; ``path`` is empty for the config, whose heading is there."""
        base: type[Section] | None = next((known for known in kind.__mro__ if known in self.places), None)
        fields = {
            name: field
            for name, field in kind.model_fields.items()
            if (base is None or name not in base.model_fields) and not _is_given_by_the_heading(field)
        }
        if path:
            yield f"{'#' * level} {title}"
        if base is not None:
            yield f"The settings of `{self.places[base]}`{', and:' if fields else '.'}"
        else:
            yield inspect.cleandoc(kind.__doc__ or "")
        self.places.setdefault(kind, path)
        yield from (_setting(name, field) for name, field in fields.items())
        for name, field in fields.items():
            below = f"{path}.{name}".removeprefix(".")
            for part, suffix, by_name in _sections(field.annotation, field.metadata):
                title = f"`{below}{suffix}`" + (f" with `{by_name}`" if by_name else "")
                yield from self.section(below + suffix, part, level + 1, title)


def _is_given_by_the_heading(field: FieldInfo) -> bool:
    """Whether there is one value only, by which the section was chosen."""
    return typing.get_origin(field.annotation) is Literal and len(typing.get_args(field.annotation)) == 1


def _setting(name: str, field: FieldInfo) -> str:
    if field.is_required():
        default = "required"
    else:
        value = field.get_default(call_default_factory=True)
        default = f"default `{_yaml(value)}`" if _yaml(value) else ""
    what = ", ".join(filter(None, [_type(field.annotation, field.metadata), default]))
    meaning = inspect.cleandoc(field.description or "")
    return "\n".join([f"`{name}`", f": {what}", "", *(f"  {line}" for line in meaning.splitlines())])


def _yaml(value: Any) -> str:
    """``value`` on one line; nothing for a section as it is by default."""
    if isinstance(value, Section):
        value = value.model_dump(mode="json", exclude_defaults=True)
        if not value:
            return ""
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()


def _type(annotation: Any, metadata: typing.Sequence[Any] = ()) -> str:
    """A type in words, with the limits of its numbers."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if any(isinstance(extra, ByName) for extra in metadata):
        key = next(extra.key for extra in metadata if isinstance(extra, ByName))
        return f"section, whose settings depend on its `{key}`"
    if origin is Annotated:
        return _type(arguments[0], [*metadata, *annotation.__metadata__])
    if origin in (Union, types.UnionType):
        words = [_type(part, metadata if part in (int, float) else ()) for part in arguments]
        return " or ".join(dict.fromkeys(words))
    if origin is Literal:
        return " or ".join(f"`{_yaml(value)}`" for value in arguments)
    if origin is dict:
        return f"mapping of names to {_plural(_type(arguments[1]))}"
    if origin is list or (origin is tuple and arguments[-1] is Ellipsis):
        return f"list of {_plural(_type(arguments[0]))}"
    if origin is tuple:
        return f"list of {len(arguments)}: {', '.join(_type(part) for part in arguments)}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    return " ".join(filter(None, [_PLAIN[annotation], _limits(metadata)]))


def _plural(words: str) -> str:
    first, _, rest = words.partition(" ")
    known = {
        "text": "texts",
        "integer": "integers",
        "number": "numbers",
        "section,": "sections,",
        "section": "sections",
    }
    return " ".join(filter(None, [known.get(first, first), rest]))


def _limits(metadata: typing.Sequence[Any]) -> str:
    found = []
    for extra in metadata:
        if isinstance(extra, FieldInfo):  # of Annotated[float, Field(ge=0)]
            found.append(_limits(extra.metadata))
        elif type(extra) in _SIGNS:
            name, sign = _SIGNS[type(extra)]
            bound = getattr(extra, name)
            if abs(bound) < _NO_LIMIT:
                found.append(f"{sign} {bound:,g}" if isinstance(bound, float) else f"{sign} {bound:,}")
    return ", ".join(filter(None, found))


def _sections(annotation: Any, metadata: typing.Sequence[Any] = ()) -> Iterator[tuple[type[Section], str, str | None]]:
    """Each class of settings in a type, what is between the setting and its own settings, and what chooses it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    for extra in metadata:
        if isinstance(extra, ByName):
            for name, kind in extra.configs().items():
                yield kind, "", f"{extra.key}: {name}"
            return
    if origin is Annotated:
        tag = next((extra.tag for extra in annotation.__metadata__ if isinstance(extra, Tag)), None)
        for kind, suffix, by_name in _sections(arguments[0], annotation.__metadata__):
            key = next((key for key in ("modality", "kind") if key in kind.model_fields), None)
            chosen = f"{key}: {tag}" if tag and key else by_name
            yield kind, suffix, chosen
    elif origin is dict:
        for kind, suffix, by_name in _sections(arguments[1]):
            yield kind, f".NAME{suffix}", by_name
    elif origin is list:
        for kind, suffix, by_name in _sections(arguments[0]):
            yield kind, f"[]{suffix}", by_name
    elif origin in (Union, types.UnionType):
        for part in arguments:
            yield from _sections(part)
    elif isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation, "", None
