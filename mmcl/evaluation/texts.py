"""Texts to vectors, for judges of text: each distinct text once, with the model's own prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np


class Encodes(Protocol):
    """Anything that turns N inputs into (N, D) vectors."""

    def encode(self, inputs: list[Any], /) -> Any: ...


def embed_texts(encoder: Encodes, texts: Sequence[str], **options: Any) -> np.ndarray:
    """(N, D) float32, in the order of the texts.

    Args:
        encoder: its ``encode`` is called once, with the distinct texts.
        texts: N texts.
        options: further arguments of ``encode``, such as ``prompt``. Those that are None are not passed, so that an
            encoder that knows nothing but texts will do.
    """
    place = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    encode: Callable[..., Any] = encoder.encode
    vectors = encode(list(place), **{name: value for name, value in options.items() if value is not None})
    return np.asarray(vectors, dtype=np.float32)[[place[text] for text in texts]]


def own_prompt(encoder: Encodes, names: Iterable[str]) -> str | None:
    """The first of the ``names`` that the encoder has a prompt of; None if it has none of them, or no prompts."""
    prompts = getattr(encoder, "prompts", None)
    if prompts is None and "text" in getattr(encoder, "embedders", {}):
        prompts = getattr(encoder.embedders["text"].tower, "prompts", None)  # type: ignore[attr-defined]
    return next((name for name in names if name in prompts), None) if isinstance(prompts, Mapping) else None
