"""Losses of the first dimensions, so that vectors may be cut."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from mmcl.config.section import Positive, Section


class MatryoshkaConfig(Section):
    """The loss at several dimensions at once, so that vectors may be cut (Kusupati et al. 2022, arXiv:2205.13147)."""

    dims: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    """The first so many dimensions, beside all of them."""
    weights: list[Positive] | None = None
    """Of each of `dims`, where the whole has weight 1; all 1 if absent."""

    @model_validator(mode="after")
    def _a_weight_each(self) -> MatryoshkaConfig:
        if self.weights is not None and len(self.weights) != len(self.dims):
            raise ValueError(f"weights: {len(self.weights)} of them for {len(self.dims)} dims; give one for each")
        return self
