"""Texts to vectors, for evaluations of text: each distinct text once, with the model's own prompts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import numpy as np


class Encodes(Protocol):
    """Anything that turns N inputs into (N, D) vectors."""

    def encode(self, inputs: list[Any], /) -> Any: ...


def text_identities(encoder: Encodes, texts: Sequence[str], prompt: str | None = None) -> list[Hashable]:
    """N values that are equal for texts that are the same thing: to an encoder with ``text_identities`` those that it
    reads as the same (``paris`` and ``Paris ``, where it lower-cases), to others equal ones."""
    identify = getattr(encoder, "text_identities", None)
    return list(texts) if identify is None else identify(texts, prompt).tolist()


def embed_texts(
    encoder: Encodes, texts: Sequence[str], *, identities: Sequence[Hashable] | None = None, **options: Any
) -> np.ndarray:
    """(N, D) float32, in the order of the texts.

    Args:
        encoder: its ``encode`` is called once, with the distinct texts.
        texts: N texts.
        identities: of the texts, see ``text_identities``: of those that are the same the first one is embedded. By
            default equal texts are.
        options: other arguments of ``encode``, such as ``prompt``. Those that are None are not passed, so that an
            encoder that knows nothing but texts will do.
    """
    of = texts if identities is None else identities
    first: dict[Hashable, int] = {}
    for number, name in enumerate(of):
        first.setdefault(name, number)
    place = {name: number for number, name in enumerate(first)}
    encode: Callable[..., Any] = encoder.encode
    distinct = [texts[number] for number in first.values()]
    vectors = encode(distinct, **{name: value for name, value in options.items() if value is not None})
    return np.asarray(vectors, dtype=np.float32)[[place[name] for name in of]]
