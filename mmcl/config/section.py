"""What every section of a config shares."""

from __future__ import annotations

import types
import typing
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, le=1e100)]
Range = tuple[float, float]


class Section(BaseModel):
    """A part of a config: unknown keys are refused, so that a typo never passes in silence."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic takes true for 1."""
        if isinstance(value, bool) and info.field_name is not None:
            allowed = set(_plain(cls.model_fields[info.field_name].annotation))
            if allowed & {int, float} and bool not in allowed:
                raise ValueError(f"a number is asked for, not {str(value).lower()}")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _partial_sections_keep_defaults(cls, value: Any, info: ValidationInfo) -> Any:
        """Of a section that a field has by default, what is set there rather than the section's own defaults."""
        if isinstance(value, dict) and info.field_name is not None:
            default = cls.model_fields[info.field_name].get_default(call_default_factory=True, validated_data={})
            if isinstance(default, Section):
                return {name: getattr(default, name) for name in default.model_fields_set} | value
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _integers_have_64_bits(cls, value: Any) -> Any:
        """Nothing that counts, sizes or numbers anything takes larger ones."""
        if _largest(value) >= 2**63:
            raise ValueError(f"a number of at most {2**63 - 1} is asked for")
        return value


def _largest(value: Any) -> int:
    """The largest magnitude of an integer in a value of plain data; sections have looked for themselves."""
    if isinstance(value, dict):
        return max(map(_largest, value.values()), default=0)
    if isinstance(value, list | tuple):
        return max(map(_largest, value), default=0)
    return abs(value) if isinstance(value, int) else 0


def _plain(annotation: Any) -> list[Any]:
    """The members of a union, or what is annotated, without what is said of it."""
    if typing.get_origin(annotation) is Annotated:
        return _plain(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [plain for member in typing.get_args(annotation) for plain in _plain(member)]
    return [annotation]
