"""Which of two documents with equal scores ranks first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from mmcl.runtime.errors import MmclError, nearest

Ties: TypeAlias = Literal["strict", "trec_eval"]
"""Of documents with equal scores, ``strict`` ranks the worst first, so that a tie never helps; ``trec_eval`` the one
whose id, as a string, comes last."""

TIES_BY_ID = "-ties-by-id"
"""Ends ``Scores.data`` where ties were ordered as in trec_eval."""


def check_ties(ties: str) -> None:
    """Raise ``MmclError`` unless there is such a rule."""
    if ties not in get_args(Ties):
        raise MmclError(f"ties '{ties}': no such rule; {nearest(ties, get_args(Ties))}")


def places_in_ties(ids: Sequence[Any]) -> np.ndarray:
    """(C,) the places that documents of these ids have in trec_eval if all have one score, from 0 up."""
    places = np.empty(len(ids), dtype=np.int64)
    places[sorted(range(len(ids)), key=lambda row: str(ids[row]), reverse=True)] = np.arange(len(ids))
    return places
