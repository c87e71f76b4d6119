"""What every section of a config shares."""

from __future__ import annotations

import types
import typing
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
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


def _plain(annotation: Any) -> list[Any]:
    """The members of a union, or what is annotated, without what is said of it."""
    if typing.get_origin(annotation) is Annotated:
        return _plain(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [plain for member in typing.get_args(annotation) for plain in _plain(member)]
    return [annotation]
