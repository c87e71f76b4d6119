"""What is learned: a section by the settings of the method that it names."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticKnownError, core_schema

from mmcl.config.section import Section
from mmcl.runtime.errors import MmclError
from mmcl.runtime.registry import Registry

log = logging.getLogger("mmcl")
DEFAULT = "clip"


class MethodConfig(Section):
    """Settings of a method, which stand beside it as its ``Config``."""

    name: str


class HasConfig(Protocol):
    """A method, of which a config needs to know the settings only."""

    Config: type[MethodConfig]


METHODS: Registry[Any] = Registry(
    "mmcl.methods",
    "method",
    {
        "clip": "mmcl.methods.clip:Clip",
        "siglip": "mmcl.methods.siglip:Siglip",
        "simcse": "mmcl.methods.simcse:Simcse",
    },
)
"""Methods by name. Another package adds its own by the entry-point group ``mmcl.methods``."""


_warned: set[str] = set()


def method_configs() -> dict[str, type[MethodConfig]]:
    """The settings of every method, by its name. What cannot be imported is left out, with a warning
    the first time."""
    found: dict[str, type[MethodConfig]] = {}
    for name in METHODS:
        try:
            found[name] = METHODS[name].Config
        except MmclError as error:
            if name not in _warned:
                log.warning("%s", error)
            _warned.add(name)
    return found


def method_config(value: Any) -> MethodConfig:
    """The settings that ``value`` describes: a method's name, or a mapping with it and its settings.

    Raises:
        ValidationError: they are not as the method's ``Config`` asks for, as pydantic says of a union by tags.
    """
    if isinstance(value, MethodConfig):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        raise PydanticKnownError("model_type", {"class_name": "MethodConfig"})
    name = str(value.get("name", DEFAULT))
    if name not in METHODS:
        known = ", ".join(f"'{method}'" for method in METHODS)
        raise PydanticKnownError("union_tag_invalid", {"discriminator": "name", "tag": name, "expected_tags": known})
    kind = METHODS[name].Config
    try:
        return kind.model_validate({"name": name, **value})
    except ValidationError as error:
        details = [
            InitErrorDetails(type=line["type"], loc=(name, *line["loc"]), input=line["input"], ctx=line.get("ctx", {}))
            for line in error.errors()
        ]
        raise ValidationError.from_exception_data(error.title, details) from None


class _ByName:
    """Has pydantic check a section by the settings of the method that it names, whatever package that is of."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def dump(config: BaseModel, info: core_schema.SerializationInfo) -> dict[str, Any]:
            return config.model_dump(mode=info.mode)

        dumped = core_schema.plain_serializer_function_ser_schema(dump, info_arg=True)
        return core_schema.no_info_plain_validator_function(method_config, serialization=dumped)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        members = [handler(kind.__pydantic_core_schema__) for kind in method_configs().values()]
        return {"oneOf": members}


AnyMethodConfig = Annotated[MethodConfig, _ByName]
