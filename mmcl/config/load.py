"""From a YAML file and overrides to a checked ``Config``; every mistake is named with its file, key and cure."""

from __future__ import annotations

import copy
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mmcl.config.by_name import ByName
from mmcl.config.read_yaml import parse_yaml, problem_of, read_yaml
from mmcl.config.schema import Config
from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.files import as_path
from mmcl.runtime.printable import short_repr, shortened


def load_config(config: str | Path | Mapping[str, Any] | Config, overrides: Iterable[str] = ()) -> Config:
    """Read and check the description of a run.

    Args:
        config: path of a YAML file, a mapping with the same keys, or a ``Config``.
        overrides: ``key=value`` strings with dotted keys, such as ``training.lr=3e-4``; values are YAML.

    Raises:
        MmclError: the file cannot be read, or a key or value is not what the schema asks for.
    """
    if isinstance(config, Config):
        where, values = "config", config.model_dump(mode="json")
    elif isinstance(config, Mapping):
        where, values = "config", copy.deepcopy(dict(config))
    else:
        where, values = str(config), read_yaml(as_path(config))
    for override in overrides:
        _set(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        foremost = _foremost(error.errors())
        raise MmclError(_explain(foremost, where, more=_elsewhere(foremost, error.errors()))) from None


def to_yaml(config: Config) -> str:
    """The resolved config as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise MmclError(f"--set {shortened(override)}: expected key=value, such as training.lr=3e-4")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise MmclError(f"--set {shortened(override)}: the value is not valid YAML: {problem_of(error)}") from None
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        below = node.get(parent)
        if below is None:
            below = node[parent] = {}
        if not isinstance(below, dict):
            raise MmclError(f"--set {shortened(override)}: '{parent}' is a value, not a section")
        node = below
    node[last] = value


def _foremost(errors: Sequence[ErrorDetails]) -> ErrorDetails:
    """The first; but of a section that is refused for being none, what is wrong inside it, if a section may stand there
    as well; and where that is a missing key, an unknown one beside it if there is one: it may be misspelt."""
    first, *others = errors
    place = _keys(first["loc"])
    if inside := [e for e in others if _keys(e["loc"])[: len(place)] == place != _keys(e["loc"])]:
        return _foremost(inside)
    if first["type"] == "missing":
        beside = (e for e in others if e["type"] == "extra_forbidden" and e["loc"][:-1] == first["loc"][:-1])
        return next(beside, first)
    return first


def _elsewhere(error: ErrorDetails, errors: Sequence[ErrorDetails]) -> int:
    """Places besides that of ``error`` where something is wrong. Each member of a union has its own complaint about the
    same value, or about the section around it."""
    place = _keys(error["loc"])
    others = {tuple(map(str, keys)) for e in errors if (keys := _keys(e["loc"])) != place[: len(keys)]}
    return len(others)


def _explain(error: ErrorDetails, where: str, more: int) -> str:
    path = _keys(error["loc"])
    key = shortened(".".join(str(part) for part in path))
    tail = f" (and {more} more)" if more else ""
    if error["type"] == "extra_forbidden":
        section = _section_at(error["loc"][:-1])
        known = section.model_fields if section else {}
        return f"{where}: unknown key '{key}'; {nearest(str(path[-1]), known)}{tail}"
    if error["type"] == "missing":
        return f"{where}: '{key}' is missing; add it{tail}"
    if error["type"] == "union_tag_invalid":
        tags, tag = [tag.strip(" '") for tag in error["ctx"]["expected_tags"].split(",")], error["ctx"]["tag"]
        name = error["ctx"]["discriminator"]
        return f"{where}: '{key}.{name}' is {short_repr(tag)}; {nearest(tag, tags)}{tail}"
    reason = error["msg"].removeprefix("Value error, ").replace("tuple", "list").replace("Tuple", "List")  # as YAML has
    got = error.get("input")
    if error["type"] == "value_error":
        place = f"in '{key}': " if key else ""
        return f"{where}: {place}{reason}{tail}"
    if error["type"] == "model_type" and (section := _section_at(error["loc"])):
        names = ", ".join(section.model_fields)
        return f"{where}: '{key}' is {short_repr(got)}, but takes settings, as in {{name: value}}, of: {names}{tail}"
    return f"{where}: '{key}' is {short_repr(got)}: {reason[0].lower()}{reason[1:]}{tail}"


def _keys(location: tuple[str | int, ...]) -> list[str | int]:
    """The keys in the YAML file on the way to an error."""
    return _along(location)[0]


def _along(location: tuple[str | int, ...]) -> tuple[list[str | int], list[Any]]:
    """The keys on the way to the place of an error, where pydantic names the member of a union besides, and the types
    that may stand there."""
    path: list[str | int] = []
    here: list[Any] = [Config]
    for part in location:
        below = [choice for option in here for choice in _below(option, part)]
        if not below and len(here) > 1:  # a member of the union, not a key
            here = [option for option in here if _tag(option) == part] or here[:1]
            continue
        path.append(part)
        here = below
    return path, here


def _section_at(location: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The section class that the place of an error lies in."""
    return next((option for option in _along(location)[1] if _is_section(option)), None)


def _below(annotation: Any, key: str | int) -> list[Any]:
    """The types that may stand under ``key`` of a section, of a ``dict[str, X]`` or of a ``list[X]``."""
    if _is_section(annotation):
        field = annotation.model_fields.get(key)
        return _options(field.annotation) if field else []
    origin = typing.get_origin(annotation)
    return _options(typing.get_args(annotation)[-1]) if origin in (dict, list) else []


def _options(annotation: Any) -> list[Any]:
    """The members of a union, ``None`` left out; anything else is its own only member."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _options(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [option for option in typing.get_args(annotation) if option is not type(None)]
        return [choice for member in members for choice in _options(member)]
    named = ByName.of.get(annotation)
    return list(named.configs().values()) if named else [annotation]


def _tag(annotation: Any) -> str:
    """How pydantic calls a member of a union in the place of an error: a method by its name, a named tower by its
    modality, a type by its own name."""
    if _is_section(annotation):
        for base, named in ByName.of.items():
            if issubclass(annotation, base):
                return str(annotation.model_fields[named.key].default)
        if modality := annotation.model_fields.get("modality"):
            return str(typing.get_args(modality.annotation)[0])
    return getattr(annotation, "__name__", str(annotation))


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
