"""The check: every count is that of a data set made with known faults, from a table and from tar shards alike."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmcl.data.check import Tokens, _Frequent, check_source
from mmcl.data.sources.tar.write import write_shards
from mmcl.runtime.errors import MmclError

RNG = np.random.default_rng(0)


def encoded(width: int, height: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 255, (height, width, 3), dtype=np.uint8)).convert(mode).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def faulty():
    """Ten rows: images 0 and 1 are equal, 7 is cut off, 8 is missing; row 5 has no text, captions repeat thrice."""
    images = [encoded(20 + n, 10 + n) for n in range(10)]
    pixels = Image.open(io.BytesIO(images[0]))
    again = io.BytesIO()
    pixels.save(again, "BMP")  # the same pixels, other bytes
    images[1] = again.getvalue()
    images[2] = encoded(90, 30, "JPEG")
    images[3] = encoded(12, 12, "PNG", "L")
    images[7] = images[7][:-60]
    images[8] = None
    texts = [["a dog", "a cat"], ["a dog"], ["a dog", "one two three"], ["x"], ["y"], [" ", ""], ["z"], ["a dog"]]
    return images, [*texts, ["p"], ["q"]]


@pytest.mark.parametrize("kind", ["table", "shards"])
def test_every_fault_is_counted(tmp_path, faulty, kind):
    images, texts = faulty
    if kind == "table":
        table = pa.table({"id": [f"r{n}" for n in range(10)], "image": images, "text": texts})
        pq.write_table(table, tmp_path / "rows.parquet")
        source = tmp_path / "rows.parquet"
    else:
        rows = [
            {"__key__": f"r{n}"} | ({"png": image} if image else {}) | {"json": {"text": said}}
            for n, (image, said) in enumerate(zip(images, texts, strict=True))
        ]
        write_shards(rows, tmp_path / "shards", per_shard=4)
        source = tmp_path / "shards"
    found = check_source(source)
    facts = found.facts
    assert facts["rows"] == 10
    images_found = facts["images"]
    assert images_found["readable"] == 8
    assert [problem["id"].rsplit(":")[-1] for problem in images_found["unreadable"]] == ["r7", "r8"]
    assert images_found["unreadable"][1]["reason"] == "no image"
    assert images_found["repeated"] == 1
    assert images_found["formats"] == {"PNG": 6, "BMP": 1, "JPEG": 1}
    assert images_found["modes"] == {"RGB": 7, "L": 1}
    assert images_found["width"] == {"min": 12.0, "median": 24.5, "max": 90.0}
    assert images_found["beyond_2_to_1"] == 1
    captions = facts["captions"]
    assert captions["count"] == 11
    assert [name.rsplit(":")[-1] for name in captions["empty"]] == ["r5"]
    assert captions["repeated"] == 3
    assert captions["most_frequent"] == [{"text": "a dog", "count": 4}]
    assert captions["words"] == {"min": 1.0, "median": 2.0, "max": 3.0}
    assert captions["a_row"]["max"] == 2
    assert {name: facts["pairs"][name] for name in ("count", "repeated")} == {"count": 9, "repeated": 1}
    assert [[name.rsplit(":")[-1] for name in group] for group in facts["pairs"]["repeated_rows"]] == [["r0", "r1"]]
    assert [[name.rsplit(":")[-1] for name in group] for group in images_found["repeated_rows"]] == [["r0", "r1"]]
    assert [[name.rsplit(":")[-1] for name in group] for group in captions["repeated_rows"]] == [
        ["r0", "r1", "r2", "r7"]
    ]
    assert any(line.startswith("3 (27.27%) captions repeat") for line in found.advice)
    json.dumps(facts)


def test_with_a_size_and_a_tokenizer_it_counts_what_is_too_small_and_too_long(tmp_path, faulty):
    images, texts = faulty
    pq.write_table(pa.table({"photo": images[:7], "said": texts[:7]}), tmp_path / "rows.parquet")

    def tokenize(texts):
        words = [text.split() for text in texts]
        return [np.arange(min(len(found), 2)) for found in words], sum(len(found) > 2 for found in words)

    named = {"image": "photo", "text": "said"}
    facts = check_source(tmp_path / "rows.parquet", **named, size=14, tokens=Tokens(tokenize, 2)).facts
    assert facts["images"]["smaller_than_size"] == 3  # 10, 10 and 12 pixels high
    assert facts["captions"]["tokens"] == {"min": 1.0, "median": 2.0, "max": 2.0}
    assert (facts["captions"]["cut"], facts["captions"]["max_tokens"]) == (1, 2)
    only = check_source(tmp_path / "rows.parquet", text="said").facts
    assert "images" not in only
    with pytest.raises(MmclError, match="no column 'image' or 'text'; name which of photo, said to read"):
        check_source(tmp_path / "rows.parquet")


def test_a_clean_data_set_gets_no_advice(tmp_path):
    pq.write_table(pa.table({"image": [encoded(9, 8), encoded(8, 9)], "text": ["a", "b"]}), tmp_path / "rows.parquet")
    assert check_source(tmp_path / "rows.parquet").advice == []


@pytest.fixture(scope="module")
def near_copies():
    """Four images: one, the same compressed anew at half the size, and two others."""
    images = [Image.fromarray(RNG.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((160, 120)) for _ in range(3)]
    files = [io.BytesIO() for _ in range(4)]
    for file, image in zip(files, [images[0], images[0].resize((80, 60)), *images[1:]], strict=True):
        image.save(file, "JPEG" if file is files[1] else "PNG")
    return [file.getvalue() for file in files]


def table_of(path, images, texts, **more):
    pq.write_table(pa.table({"image": images, "text": texts, **more}), path)
    return path


def test_near_copies_are_listed_by_row(tmp_path, near_copies):
    texts = ["A dog, running!", "a cat", "a dog running", "A cat"]
    found = check_source(table_of(tmp_path / "rows.parquet", near_copies, texts))
    assert (found.facts["images"]["near"], found.facts["images"]["near_rows"]) == (1, [["0", "1"]])
    assert found.facts["captions"]["near_rows"] == [["0", "2"], ["1", "3"]]
    assert found.facts["images"]["repeated_rows"] == found.facts["captions"]["repeated_rows"] == []
    assert any("images look like another one" in line for line in found.advice)


def test_rows_that_stand_in_another_split_are_listed(tmp_path, near_copies):
    train = table_of(tmp_path / "train.parquet", [near_copies[0], near_copies[3]], ["One.", "two"])
    table_of(tmp_path / "test.parquet", [near_copies[2], near_copies[1], near_copies[3]], ["two", "one", "two"])
    expected = [("1", "0", False), ("2", "1", True)]
    for source, options in (
        (tmp_path, {"split": "test", "against": ["train"]}),
        (tmp_path / "test.parquet", {"against": [train]}),
        (tmp_path / "test.parquet", {"against": [f"{tmp_path}:train"]}),
    ):
        found = check_source(source, **options)
        rows = found.facts["leaks"]["rows"]
        assert [(row["id"], row["as"], row["equal"]) for row in rows] == expected
        assert found.facts["leaks"]["images"] == {"count": 0, "rows": []}
        assert any("rows stand in what they are to be judged against, too: 1 (" in line for line in found.advice)
    with pytest.raises(MmclError, match="no split 'dev'"):
        check_source(tmp_path, split="test", against=["dev"])
    with pytest.raises(MmclError, match=r"against nope\.csv: nope\.csv: no such file"):
        check_source(tmp_path, split="test", against=["nope.csv"])
    both = [near_copies[2], near_copies[1], near_copies[0], near_copies[3]]
    one = table_of(tmp_path / "one.parquet", both, list("abcd"), split=["train", "test", "train", "train"])
    assert check_source(one).facts["across_splits"] == {"count": 2, "rows": [["1", "2"]]}
    (tmp_path / "texts.csv").write_text("text,split\nA dog.,train\na dog,test\na cat,test\n")
    assert check_source(tmp_path / "texts.csv").facts["across_splits"]["rows"] == [["0", "1"]]


def test_a_row_stands_in_another_split_if_image_and_caption_do(tmp_path, near_copies):
    """Of rows with the same image one with the same caption is named, and those without are apart."""
    one, copy, other, third = near_copies
    train = table_of(tmp_path / "train.parquet", [other, one, copy, one], [["x"], ["a"], ["b"], ["c", "d"]])
    images, texts = [one, copy, one, third, other], [["B!"], ["D", "y"], ["z"], ["a"], ["w", "v"]]
    found = check_source(table_of(tmp_path / "test.parquet", images, texts), against=[train])
    leaks = found.facts["leaks"]
    assert [(row["id"], row["as"], row["equal"]) for row in leaks["rows"]] == [("0", "2", False), ("1", "3", False)]
    alone = [(row["id"], row["as"], row["equal"]) for row in leaks["images"]["rows"]]
    assert alone == [("2", "1", True), ("4", "0", True)]
    assert any(line.startswith("2 (40.00%) images look like one there that has another") for line in found.advice)
    without = table_of(tmp_path / "plain.parquet", images, [None] * 5).rename(tmp_path / "images.parquet")
    pq.write_table(pq.read_table(without).drop_columns("text"), without)
    bare = check_source(without, against=[train]).facts["leaks"]
    assert [row["id"] for row in bare["rows"]] == ["0", "1", "2", "4"]
    assert "images" not in bare


def test_a_damaged_shard_is_named_and_the_others_are_read(tmp_path):
    rows = [{"__key__": f"r{n}", "png": encoded(8, 8), "txt": f"text {n}"} for n in range(6)]
    first, second = write_shards(rows, tmp_path / "shards", per_shard=3)
    first.write_bytes(first.read_bytes()[:2600])
    facts = check_source(tmp_path / "shards").facts
    assert facts["rows"] < 6
    assert len(facts["damaged_shards"]) == 1
    assert facts["damaged_shards"][0]["id"].startswith(first.name)
    second.write_bytes(b"no tar at all")
    first.write_bytes(b"nor this")
    with pytest.raises(MmclError, match="no sample can be read"):
        check_source(tmp_path / "shards")


def test_frequent_texts_survive_a_flood_of_rare_ones():
    frequent = _Frequent(capacity=20)
    for start in range(0, 4000, 10):
        frequent.add([f"rare {n}" for n in range(start, start + 10)] + ["often", "often", "now and then"])
    assert [text for text, _ in frequent.counts.most_common(2)] == ["often", "now and then"]
    assert len(frequent.counts) <= 40


def test_transparent_images_are_counted_and_the_background_is_named(tmp_path):
    for name, mode in (("a", "RGBA"), ("b", "LA"), ("c", "RGB")):
        Image.new(mode, (8, 8)).save(tmp_path / f"{name}.png")
    check = check_source(tmp_path)
    assert check.facts["images"]["transparent"] == 2
    assert any("composited on white" in line for line in check.advice)
