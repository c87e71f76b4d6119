"""What can be searched by: words, images, things of the index, and weighted mixes of these."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from mmcl.data.images import image_suffixes
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import existing_file

log = logging.getLogger("mmcl")

_WEIGHED = re.compile(r"(?P<input>.*):(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))", re.DOTALL)
_LIKE = "id="


@dataclass(frozen=True)
class Like:
    """A thing of the index, by its id: what is most like it is searched for, and it is no result itself."""

    id: int | str

    def __str__(self) -> str:
        return f"{_LIKE}{self.id}"


Part: TypeAlias = tuple[Any, float]
"""A text, an image (a path, PIL image or array) or a :class:`Like`, and its weight."""


def is_mix(query: Any) -> bool:
    """Whether a query is a list of (input, weight): of inputs alone, it would be several queries."""
    return isinstance(query, list) and bool(query) and all(isinstance(part, tuple) for part in query)


def parts_of(query: Any) -> list[Part]:
    """A query as inputs with weights: one that is no mix weighs 1.

    Raises:
        MmclError: a text is empty; a weight is 0, or no finite number; or a part is no pair.
    """
    parts = query if is_mix(query) else [(query, 1.0)]
    for part in parts:
        if len(part) != 2:
            raise MmclError(f"a part of a mix is (input, weight), not {part!r:.80}")
        given, weight = part
        if isinstance(given, str) and not given.strip():
            raise MmclError("a query is empty; name words, or an image file")
        if not isinstance(weight, int | float) or not math.isfinite(weight) or weight == 0:
            raise MmclError(
                f"the weight of {shown(given)!r} is {weight!r}; give a number that is not 0, such as 0.5 or -0.4"
            )
    return list(parts)


def parse_mix(parts: Iterable[str], modalities: Collection[str]) -> list[Part]:
    """A mix from the command line: ``red shoe``, ``photo.jpg:0.5``, ``leather:-0.4``, ``id=shoe-17:0.3``. What follows
    the last colon is the weight where it is a number; 1 without one.

    Raises:
        MmclError: as :func:`parts_of`.
    """
    found: list[Part] = []
    for part in parts:
        match = _WEIGHED.fullmatch(part)
        given, weight = (match["input"], float(match["weight"])) if match else (part, 1.0)
        named = Like(given.removeprefix(_LIKE)) if given.startswith(_LIKE) else text_or_image(given, modalities)
        found.append((named, weight))
    return parts_of(found)


def text_or_image(query: str, modalities: Collection[str]) -> str | Path:
    """The path of an image file, or text; what looks like the one and is taken for the other is said.

    Args:
        query: of the command line.
        modalities: what the model embeds.
    """
    path = existing_file(query)
    named = Path(query).suffix.lower() in image_suffixes() and " " not in query
    if path is not None and "image" in modalities and (named or _is_image(path)):
        return path
    if path is not None:
        log.warning("%s: there is such a file, but it is searched as text", query)
    elif named:
        log.warning("%s: there is no such file, so it is searched as text", query)
    return query


def shown(query: Any) -> str:
    """What a query is called in a table of results."""
    if is_mix(query):
        return " ".join(_weighed(given, weight, first=place == 0) for place, (given, weight) in enumerate(query))
    return query if isinstance(query, str) else str(query) if isinstance(query, Like | Path) else f"an {_kind(query)}"


def image_of(query: Any) -> Any:
    """The first image of a query; None of one without."""
    inputs = (given for given, _ in (query if is_mix(query) else [(query, 1.0)]))
    return next((given for given in inputs if not isinstance(given, str | Like)), None)


def _weighed(given: Any, weight: float, first: bool) -> str:
    sign = ("-" if weight < 0 else "") if first else ("- " if weight < 0 else "+ ")
    return sign + ("" if abs(weight) == 1 else f"{abs(weight):g} × ") + shown(given)


def _kind(query: Any) -> str:
    return "image" if isinstance(query, bytes | Image.Image) or hasattr(query, "shape") else type(query).__name__


def _is_image(path: Path) -> bool:
    try:
        with Image.open(path):
            return True
    except Exception:  # whatever the readers of some fifty formats meet
        return False
