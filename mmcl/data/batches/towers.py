"""What batches are made for: a model, as far as its inputs are concerned."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from mmcl.data.processors.image import ImageProcessor
from mmcl.data.processors.table import TableProcessor
from mmcl.data.processors.text import TextProcessor


class Tower(Protocol):
    """Inputs to features."""

    width: int

    def __call__(self, *args: Any, **inputs: Any) -> Tensor:
        """(N, width) features."""


class Embedder(Protocol):
    """A tower, and the processor that makes its inputs."""

    frozen: bool

    @property
    def modality(self) -> str:
        """``image``, ``text`` or ``table``."""

    @property
    def processor(self) -> ImageProcessor | TextProcessor | TableProcessor:
        """From raw inputs to the tower's."""

    @property
    def tower(self) -> Tower:
        """Inputs to features."""


class Encoder(Protocol):
    """A model by its embedders."""

    def embedder(self, name: str, /) -> Embedder:
        """The embedder called ``name``."""
