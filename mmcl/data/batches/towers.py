"""What batches are made for: the part of a tower that says what its inputs are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from mmcl.data.images import ImageInput, PreparedImage, ResizeMode


class Tower(Protocol):
    """Inputs to features."""

    width: int

    @property
    def modality(self) -> str:
        """``image`` or ``text``."""

    def __call__(self, *args: Any, **inputs: Any) -> Tensor:
        """(N, width) features."""


class ImageTower(Tower, Protocol):
    """Pixels to features."""

    size: int
    resize: ResizeMode

    @property
    def exact_decoding(self) -> bool:
        """Whether large JPEG files are decoded at their full size."""

    def prepare(self, image: ImageInput | None) -> PreparedImage:
        """An image decoded and resized."""


class TextTower(Tower, Protocol):
    """Tokens to features."""

    prompts: dict[str, str]
    max_tokens: int

    def key(self) -> str:
        """Changes whenever the tokens of a text do."""

    def prompt_text(self, prompt: str | None = None) -> str:
        """The text that is put before every other."""

    def skipped(self, prompt: str | None = None) -> int:
        """How many of a text's first tokens do not enter the pooling."""

    def identities(
        self, texts: Sequence[str], prompt: str | None = None, tokens: Sequence[np.ndarray] | None = None
    ) -> np.ndarray:
        """(N,) int64, equal for texts that the tower reads alike."""

    def tokenize(self, texts: Sequence[str], prompt: str | None = None) -> tuple[list[np.ndarray], int]:
        """Token ids of each text, and how many texts were cut."""

    def collate(self, tokens: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Token ids as named inputs."""


class Embedder(Protocol):
    """A tower and its head."""

    frozen: bool

    @property
    def tower(self) -> Any:
        """An :class:`ImageTower` or a :class:`TextTower`."""


class Encoder(Protocol):
    """A model by its embedders."""

    def embedder(self, name: str, /) -> Embedder:
        """The embedder called ``name``."""
