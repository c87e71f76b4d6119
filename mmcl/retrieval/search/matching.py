"""Which results are the same thing as the query, by the threshold that was measured for the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcl.encoding import Encoder
from mmcl.formats.threshold import read_threshold
from mmcl.retrieval.search.queries import Like, shown
from mmcl.runtime.errors import MmclError


def parse_match(text: str) -> bool | float:
    """From the command line: ``best``, for the best F1, or a precision such as ``0.95``.

    Raises:
        MmclError: it is neither.
    """
    if text == "best":
        return True
    try:
        precision = float(text)
    except ValueError:
        precision = 0.0
    if not 0 < precision < 1:
        raise MmclError(f"--match {text}: give best, for the best F1, or a precision that was measured, such as 0.95")
    return precision


def match_cosine(encoder: Encoder, parts: Sequence[tuple[Any, float]], documents: str, match: bool | float) -> float:
    """The cosine from which a query and a result are the same thing, as ``mmcl eval threshold`` keeps it in the folder
    of the model.

    Args:
        encoder: of the query.
        parts: of the query, see :func:`mmcl.retrieval.search.queries.parts_of`.
        documents: what the index is of, ``text`` or ``image``.
        match: True for the best F1, or a precision.

    Raises:
        MmclError: the query is a mix, there is no such threshold, or it is of other weights.
    """
    if len(parts) > 1:
        raise MmclError(f"'{shown(list(parts))}': a mix matches nothing; search for matches of one text, image or id")
    given = parts[0][0]
    asked = documents if isinstance(given, Like) else "text" if isinstance(given, str) else "image"
    kept = read_threshold(encoder.path or "", "-".join(sorted((asked, documents))))
    if kept.encoder["weights"] != encoder.fingerprint()["weights"]:
        raise MmclError(f"{kept.folder}: its threshold is of other weights; measure it with: mmcl eval threshold")
    return kept.above(None if match is True else match)
