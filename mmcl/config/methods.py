"""What is learned: one section a method."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from mmcl.config.section import Positive, Section


class TeacherConfig(Section):
    """A model whose similarities are learned besides the pairs."""

    name: str
    """As `mmcl.load` takes it. It embeds every picture (as it is, not augmented) and caption once."""
    weight: Positive = 1.0
    """Weight of the distillation term; the contrastive one has weight 1."""
    temperature: Annotated[float, Field(gt=0.0)] | None = None
    """Temperature of the teacher's similarities; its own if absent, and 0.01 if it has none."""


class ClipConfig(Section):
    """Image and text towers under a symmetric InfoNCE loss (Radford et al. 2021, arXiv:2103.00020)."""

    name: Literal["clip"] = "clip"
    temperature: Annotated[float, Field(ge=0.01, le=1.0)] | None = None
    """Temperature at the start; that of the model to start from if absent, and 0.07 if there is none."""
    learn_temperature: bool = True
    """Learn the temperature; it stays at least 0.01."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the target spread evenly over all candidates."""
    extra_texts: int = Field(default=0, ge=0)
    """Further captions, drawn anew for every batch from all training rows, as negatives of every picture. Nearly free
    where the text tower is frozen; more than there are takes them all."""
    teacher: TeacherConfig | None = None
    """Learn the similarities of another model besides."""


class SiglipConfig(Section):
    """Image and text towers under a pairwise sigmoid loss (Zhai et al. 2023, arXiv:2303.15343)."""

    name: Literal["siglip"] = "siglip"
    temperature: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Temperature at the start; if absent that of the model to start from, if it comes with a bias, and else 0.1."""
    bias: float | None = None
    """Bias at the start; that of the model to start from if absent, and else the log-odds of a positive, -ln(N - 1)
    for a global batch of N."""
    learn_temperature: bool = True
    """Learn the temperature."""
    learn_bias: bool = True
    """Learn the bias."""
    teacher: TeacherConfig | None = None
    """Learn the similarities of another model besides."""


def _method_name(value: Any) -> str:
    return str(value.get("name", "clip") if isinstance(value, dict) else getattr(value, "name", "clip"))


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


MethodConfig = Annotated[
    Annotated[ClipConfig, Tag("clip")] | Annotated[SiglipConfig, Tag("siglip")],
    Discriminator(_method_name),
    BeforeValidator(_named),
]
