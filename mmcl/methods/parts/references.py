"""Models beside the one that learns: a teacher whose similarities are learned, a guide that finds false negatives."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mmcl.config.section import Positive, Section


class TeacherConfig(Section):
    """A model whose similarities are learned besides the pairs."""

    name: str
    """As `mmcl.load` takes it. It embeds every image (as it is, not augmented) and caption once; those of tar
    shards in every step."""
    weight: Positive = 1.0
    """Weight of the distillation term; the contrastive one has weight 1."""
    temperature: Annotated[float, Field(gt=0.0)] | None = None
    """Temperature of the teacher's similarities; its own if absent, and 0.01 if it has none."""


class GuideConfig(Section):
    """A model that finds false negatives: candidates that it holds closer than the positive are none (GISTEmbed,
    Solatorio 2024, arXiv:2402.16829)."""

    name: str
    """As `mmcl.load` takes it. It embeds every text once, those of tar shards in every step, in float32 whatever
    `training.precision` is."""
    margin: float = 0.0
    """A candidate is no negative if the guide's cosine to it exceeds that to the positive less this margin."""
