"""What a report shows of single queries: searches with their results, and mistakes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmcl.data.images import ImageInput


@dataclass
class Hit:
    """One result of a search.

    Attributes:
        label: what the result is called.
        score: its similarity to the query.
        image: an encoded image of any format, the path of one, or None.
        right: whether it answers the query; None where nobody knows.
        details: what else is known of it, in a line.
    """

    label: str
    score: float
    image: bytes | Path | None = None
    right: bool | None = None
    details: str = ""


@dataclass
class Search:
    """A query and what was found for it, best first.

    Attributes:
        query: its words, or what it is called.
        hits: the results.
        image: that was searched by, if one was.
    """

    query: str
    hits: list[Hit]
    image: ImageInput | None = None


@dataclass
class Mistake:
    """An image that is nearer to a wrong name than to its own.

    Attributes:
        image: the encoded image, or its path.
        name: what it is.
        taken_for: the name the model put first.
        taken_for_image: an image of what it was taken for, or None.
        score: similarity to ``taken_for``.
        score_of_right: similarity to ``name``.
        rank_of_right: 1-based rank of ``name`` among all names.
    """

    image: bytes | Path | None
    name: str
    taken_for: str
    taken_for_image: bytes | Path | None
    score: float
    score_of_right: float
    rank_of_right: int
