"""Sections whose settings are those of what they name, whatever package that is of."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticKnownError, core_schema

from mmcl.config.section import Section
from mmcl.runtime.errors import MmclError
from mmcl.runtime.registry import Registry

log = logging.getLogger("mmcl")


class ByName:
    """Has pydantic check a section by the settings of what it names; metadata of an ``Annotated[base, ByName(...)]``.

    Args:
        registry: of classes, each with its settings as ``Config``, a subclass of ``base``.
        base: what all of the settings share.
        key: the setting that holds the name.
        default: the name where none is given.
        alone: whether the name may stand for the section, with no settings.
    """

    of: ClassVar[dict[type[Section], ByName]] = {}
    """By their ``base``, for messages about the settings."""

    def __init__(
        self, registry: Registry[Any], base: type[Section], *, key: str, default: str, alone: bool = False
    ) -> None:
        self.registry, self.base, self.key, self.default, self.alone = registry, base, key, default, alone
        self._warned: set[str] = set()
        ByName.of[base] = self

    def configs(self) -> dict[str, type[Section]]:
        """The settings of everything registered, by name. What cannot be imported, or has no such settings, is left
        out, with a warning the first time."""
        found: dict[str, type[Section]] = {}
        for name in self.registry:
            try:
                found[name] = self.config_of(name)
            except MmclError as error:
                if name not in self._warned:
                    log.warning("%s", error)
                self._warned.add(name)
        return found

    def config_of(self, name: str) -> type[Section]:
        """The settings of what is called ``name``, a class registered under it.

        Raises:
            MmclError: it cannot be imported, has no subclass of ``base`` as its ``Config``, or that is of another name.
        """
        kind = self.registry[name]
        config = getattr(kind, "Config", None)
        where = f"{self.registry.kind} '{name}': {kind.__module__}.{getattr(kind, '__qualname__', kind)}"
        base = f"{self.base.__module__}.{self.base.__name__}"
        if not (isinstance(config, type) and issubclass(config, self.base)):
            raise MmclError(f"{where} has no settings; set its Config to a subclass of {base}")
        wanted = f'{self.key}: Literal["{name}"] = "{name}"'
        annotation = config.model_fields[self.key].annotation
        if get_origin(annotation) is not Literal or name not in get_args(annotation):
            raise MmclError(f"{where}: its Config, {config.__name__}, has another {self.key}; declare {wanted} there")
        return config

    def validate(self, value: Any) -> Any:
        """The settings that ``value`` describes: a mapping of them, or perhaps the name alone.

        Raises:
            ValidationError: they are not as the ``Config`` of what is named asks for, as pydantic says of a union by
                tags.
        """
        if isinstance(value, self.base):
            return value
        if isinstance(value, str) and self.alone:
            value = {self.key: value}
        if not isinstance(value, Mapping):
            raise PydanticKnownError("model_type", {"class_name": self.base.__name__})
        name = str(value.get(self.key, self.default))
        if name not in self.registry:
            tags = ", ".join(f"'{known}'" for known in self.registry)
            raise PydanticKnownError(
                "union_tag_invalid", {"discriminator": self.key, "tag": name, "expected_tags": tags}
            )
        kind = self.config_of(name)
        try:
            return kind.model_validate({self.key: name, **value})
        except ValidationError as error:
            details = [
                InitErrorDetails(
                    type=line["type"], loc=(name, *line["loc"]), input=line["input"], ctx=line.get("ctx", {})
                )
                for line in error.errors()
            ]
            raise ValidationError.from_exception_data(error.title, details) from None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def dump(config: BaseModel, info: core_schema.SerializationInfo) -> dict[str, Any]:
            return config.model_dump(mode=info.mode)

        dumped = core_schema.plain_serializer_function_ser_schema(dump, info_arg=True)
        return core_schema.no_info_plain_validator_function(self.validate, serialization=dumped)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"oneOf": [handler(kind.__pydantic_core_schema__) for kind in self.configs().values()]}
