"""Which of its prompts, and which of its towers, a model wants for queries, and which for documents: evaluation,
encoding and search ask here, so that what is served is what was measured."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

_QUERY, _DOCUMENT = ("query",), ("document", "passage", "corpus")  # what models call their prompts and towers


def query_prompt(encoder: Any) -> str | None:
    """The name of the model's prompt for texts that search among texts: ``query``, if it has one, else None, which is
    its default one. Anything without ``prompts`` has none."""
    return _first_of(_QUERY, getattr(for_queries(encoder), "prompts", None) or ())


def document_prompt(encoder: Any) -> str | None:
    """As :func:`query_prompt`, for texts that are searched in: ``document``, ``passage`` or ``corpus``."""
    return _first_of(_DOCUMENT, getattr(for_documents(encoder), "prompts", None) or ())


def query_tower(encoder: Any) -> str | None:
    """The name of the model's tower of texts that search among texts: ``query``, of several towers of texts; None for
    its only one, and where none is called so."""
    return _first_of(_QUERY, _text_towers(encoder))


def document_tower(encoder: Any) -> str | None:
    """As :func:`query_tower`, for texts that are searched in: ``document``, ``passage`` or ``corpus``."""
    return _first_of(_DOCUMENT, _text_towers(encoder))


def for_queries(encoder: Any) -> Any:
    """``encoder`` without other towers of texts than that of queries, if it has such a one."""
    tower = query_tower(encoder)
    return encoder if tower is None else encoder.only(tower)


def for_documents(encoder: Any) -> Any:
    """``encoder`` without other towers of texts than that of documents, if it has such a one."""
    tower = document_tower(encoder)
    return encoder if tower is None else encoder.only(tower)


def _text_towers(encoder: Any) -> list[str]:
    towers: Any = getattr(encoder, "towers", None)
    names: list[str] = towers.of_modality("text") if hasattr(towers, "of_modality") else []
    return names if len(names) > 1 else []


def _first_of(names: tuple[str, ...], known: Collection[str]) -> str | None:
    return next((name for name in names if name in known), None)
