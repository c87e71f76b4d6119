"""Whether a model and an index belong together."""

from __future__ import annotations

import logging

from mmcl.encoding import Encoder
from mmcl.encoding.prompts import document_prompt
from mmcl.retrieval.index import VectorIndex
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")


def check_belongs(encoder: Encoder, index: VectorIndex, where: str) -> None:
    """Compare a model with the fingerprint of the one that made the vectors of an index.

    Where it cannot be known, a warning says so, and another where texts were encoded behind another prompt than the
    evaluation would put before them.

    Args:
        encoder: of the queries, by all its towers.
        index: to be searched.
        where: what messages call the index.

    Raises:
        MmclError: the model has other weights, other settings, another prompt or another dimension.
    """
    known = index.encoder
    if known is None:
        if index.dim != encoder.dim:
            raise MmclError(
                f"{where}: its vectors have {index.dim} dimensions, those of '{encoder.name}' have {encoder.dim}; name "
                "the model that made them with --model, or encode and index anew with this one"
            )
        if index.model is not None:
            log.warning(
                "%s: does not say by which weights its vectors were made, so that it is not known whether '%s' still "
                "has these; encode and index anew to have it checked",
                where,
                encoder.name,
            )
        return
    found = ((part, part.fingerprint()) for part in encoder.parts())
    part, now = next(((part, now) for part, now in found if now["weights"] == known["weights"]), (None, None))
    if part is None or now is None:
        raise MmclError(
            f"{where}: its vectors were made by other weights or settings than those of '{encoder.name}'; name the "
            "model that made them with --model, or encode and index anew with this one"
        )
    if now["prompt"] != known["prompt"]:
        raise MmclError(
            f"{where}: '{encoder.name}' now puts {now['prompt']!r} before a text, and put {known['prompt']!r} when the "
            "vectors were made; give it that prompt, or encode and index anew"
        )
    _check_documents(part, known.get("documents"), where)


def _check_documents(encoder: Encoder, words: str | None, where: str) -> None:
    """Whether the texts of an index stand behind ``words`` that the model still has, and that evaluation uses."""
    if words is None or len(encoder.towers.of_modality("text")) != 1:
        return
    if words and words not in encoder.prompts.values():
        raise MmclError(
            f"{where}: its texts were encoded behind {words!r}, which is no prompt of '{encoder.name}' any more; give "
            "it that prompt, or encode and index anew"
        )
    name = document_prompt(encoder)
    measured = encoder.prompt_text(name)
    if words != measured:
        log.warning(
            "%s: its texts were encoded behind %r, and mmcl eval retrieval puts %r before documents, so that its "
            "numbers do not hold here; encode anew with %s",
            *(where, words, measured, f"--prompt {name}" if name else "no --prompt"),
        )
