"""What is off in a data set, by the facts that a check counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_NAMED = 3  # rows, and groups of rows, that advice names; all are in the facts


def advice_of(facts: dict[str, Any]) -> list[str]:
    """What is off, and what to do about it."""
    images, captions, pairs = (facts.get(name, {}) for name in ("images", "captions", "pairs"))
    found = [
        (len(facts.get("damaged_shards", ())), facts["rows"], "damaged shards, read up to the damage: write them anew")
    ]
    if images:
        count = images["readable"]
        found += [
            (len(images["unreadable"]), facts["rows"], "images cannot be read; training skips and lists them"),
            (images["repeated"], count, "images repeat another; they are not each other's negatives"),
            (
                images["beyond_2_to_1"],
                count,
                "images are more than twice as long as wide or wide as long, and a centre crop loses half of "
                "them; see data.image.resize",
            ),
            (images["transparent"], count, "images have transparency, which is composited on white"),
            (images.get("smaller_than_size", 0), count, f"images are smaller than {images.get('size')} pixels"),
        ]
    if captions:
        found += [
            (len(captions["empty"]), facts["rows"], "rows have no caption; training skips and lists them"),
            (captions["repeated"], captions["count"], "captions repeat another; they are not each other's negatives"),
            (captions.get("cut", 0), captions["count"], "captions are longer than the model reads, and are cut"),
        ]
    if images:
        more = ", at least: so many look alike that not all were compared" if images.get("near_incomplete") else ""
        near = f"images look like another one{more}: it may be the same image in another size or file"
        found.append((images["near"], images["readable"], near))
    if captions:
        found.append((captions["near"], captions["count"], "captions are another one but for case and punctuation"))
    if pairs:
        rows = _first(pairs["repeated_rows"])
        found.append(
            (pairs["repeated"], pairs["count"], f"pairs stand there more than once; remove the copies: {rows}")
        )
    if shared := facts.get("across_splits"):
        rows = _first(shared["rows"])
        found.append((shared["count"], facts["rows"], f"rows are like one of another split: {rows}"))
    if leaked := facts.get("leaks"):
        found.append(
            (
                leaked["count"],
                facts["rows"],
                f"rows stand in what they are to be judged against, too: {_elsewhere(leaked['rows'])}",
            )
        )
        alone = leaked.get("images", {"count": 0, "rows": []})
        what = f"images look like one there that has another caption: {_elsewhere(alone['rows'])}"
        found.append((alone["count"], facts["rows"], what))
    return [f"{count:,} ({count / max(total, 1):.2%}) {what}" for count, total, what in found if count]


def _elsewhere(rows: Sequence[dict[str, Any]]) -> str:
    """The first rows, and what each is elsewhere, for a line."""
    return ", ".join(f"{row['id']} ({row['in']}: {row['as']})" for row in rows[:_NAMED])


def _first(groups: Sequence[Sequence[str]]) -> str:
    """The first groups of rows, for a line."""
    shown = "; ".join(" = ".join(group[:_NAMED]) + (" = …" if len(group) > _NAMED else "") for group in groups[:_NAMED])
    return shown + ("; …" if len(groups) > _NAMED else "")
