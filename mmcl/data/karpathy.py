"""The JSON files in which Karpathy's splits of Flickr8k, Flickr30k and COCO are handed around."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from mmcl.runtime.errors import MmclError

_START = re.compile(rb'\s*\{\s*("dataset"\s*:\s*"[^"]*"\s*,\s*)?"images"\s*:\s*\[\s*\{')
_TRIED = 100  # pictures looked for before it is said that there are none


def is_karpathy(file: Path) -> bool:
    """Whether a ``.json`` file begins as those do: ``{"images": [{…``."""
    if file.suffix.lower() != ".json":
        return False
    with file.open("rb") as opened:
        return _START.match(opened.read(4096)) is not None


def read_karpathy(file: Path, split: str | None) -> dict[str, list[Any]] | None:
    """The columns ``id`` (a picture's name), ``image`` (its path from the file's folder) and ``text`` (its captions).

    Pictures lie beside the file or in ``images/``, by their ``filepath`` where they have one. ``split`` is one of the
    file's own (COCO's ``restval`` is one), or several joined by ``+``.

    Returns None for a file of another kind. Raises ``MmclError`` if ``split`` does not choose pictures, or if they are
    not there.
    """
    images = _images(file)
    if images is None:
        return None
    sizes = Counter(image["split"] for image in images)
    known = ", ".join(f"{part} ({size:,})" for part, size in sizes.items())
    if split is None and len(sizes) > 1:
        raise MmclError(f"{file}: it has the splits {known}; name one as split, or several as train+restval")
    wanted = set(sizes) if split is None else set(split.split("+"))
    if missing := sorted(wanted - set(sizes)):
        raise MmclError(f"{file}: no split '{missing[0]}'; it has {known}")
    images = [image for image in images if image["split"] in wanted]
    folder, nested = _layout(file, images)
    return {
        "id": [image["filename"] for image in images],
        "image": [str(_path(image, folder, nested)) for image in images],
        "text": [[sentence["raw"] for sentence in image["sentences"]] for image in images],
    }


def _images(file: Path) -> list[dict[str, Any]] | None:
    try:
        content = json.loads(file.read_bytes())
        images: list[dict[str, Any]] = content["images"]
        needed = {"filename", "split", "sentences"}
        whole = all(needed <= image.keys() and all("raw" in s for s in image["sentences"]) for image in images)
    except (ValueError, TypeError, KeyError, AttributeError):  # JSON lines, say
        return None
    return images if whole else None


def _layout(file: Path, images: list[dict[str, Any]]) -> tuple[str, bool]:
    """Which folder the pictures lie in, and whether by their ``filepath``: the first way that finds one."""
    ways = list(itertools.product(("", "images"), (True, False)))
    for folder, nested in ways:
        if any((file.parent / _path(image, folder, nested)).is_file() for image in images[:_TRIED]):
            return folder, nested
    tried = dict.fromkeys(str(file.parent / _path(images[0], *way)) for way in ways)
    raise MmclError(f"{file}: its pictures are not there; looked for {', '.join(tried)}")


def _path(image: dict[str, Any], folder: str, nested: bool) -> PurePosixPath:
    return PurePosixPath(folder, image.get("filepath", "") if nested else "", image["filename"])
