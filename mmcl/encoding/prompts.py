"""Which of its prompts a model wants before queries, and which before documents: evaluation, encoding and search ask
here, so that what is served is what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_QUERY, _DOCUMENT = ("query",), ("document", "passage", "corpus")  # what models call their prompts


def query_prompt(encoder: Any) -> str | None:
    """The name of the model's prompt for texts that search among texts: ``query``, if it has one, else None, which is
    its default one. Anything without ``prompts`` has none."""
    return _first_of(encoder, _QUERY)


def document_prompt(encoder: Any) -> str | None:
    """As :func:`query_prompt`, for texts that are searched in: ``document``, ``passage`` or ``corpus``."""
    return _first_of(encoder, _DOCUMENT)


def _first_of(encoder: Any, names: tuple[str, ...]) -> str | None:
    prompts = getattr(encoder, "prompts", None)
    return next((name for name in names if name in prompts), None) if isinstance(prompts, Mapping) else None
