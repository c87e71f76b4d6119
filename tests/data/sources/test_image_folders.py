"""Folders of images: everything that Pillow reads, links followed, what is left out said, labels and splits."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmcl.data.images import decode, image_suffixes
from mmcl.data.sources import open_source
from mmcl.runtime.errors import MmclError


def draw(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "JPEG" if path.suffix.lower() in (".jpg", ".jfif", ".jpe", ".jpeg") else None
    Image.new("RGB", (4, 4), (level, 0, 0)).save(path, kind)
    return path


def test_every_suffix_that_pillow_reads_is_an_images(tmp_path: Path) -> None:
    names = [
        "a.jfif",
        "b.jpe",
        "c.ppm",
        "d.JPG",
        "e.png",
        "f.tga",
        "g.ico",
        "h.pgm",
        "i.dib",
        "j.bmp",
        "k.webp",
        "l.gif",
    ]
    for name in names:
        draw(tmp_path / name)
    rows = open_source(tmp_path)
    assert rows.ids() == names
    assert {decode(image).size for image in rows.images("image", range(len(rows)))} == {(4, 4)}
    assert image_suffixes().isdisjoint({".pdf", ".h5", ".mpg", ".txt", ".eps", ""})


def test_linked_folders_are_read_and_circles_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path / "outside" / "a.png")
    root = tmp_path / "root"
    draw(root / "b.png")
    draw(root / "real" / "c.png")
    (root / "linked").symlink_to(tmp_path / "outside", target_is_directory=True)
    (root / "real" / "up").symlink_to(root, target_is_directory=True)
    (root / "d.png").symlink_to(tmp_path / "outside" / "a.png")
    (root / "dead.png").symlink_to(tmp_path / "nothing.png")
    (root / "self").symlink_to(root / "self")
    assert open_source(root).ids() == ["b.png", "d.png", "linked/a.png", "real/c.png"]
    assert "1 links back to a folder that they lie in" in caplog.text
    assert "links that lead nowhere" in caplog.text


@pytest.mark.parametrize("junk", [".ipynb_checkpoints", ".Trash", "__MACOSX", "@eaDir", "$RECYCLE.BIN", ".git"])
def test_hidden_and_system_folders_are_left_out_and_counted(
    tmp_path: Path, junk: str, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in (tmp_path / junk, tmp_path / "x" / junk / "y"):
        draw(folder / "hidden.png")
    for name in ("a.png", "x/b.png", "x/._b.png"):
        draw(tmp_path / name)
    (tmp_path / "notes.pdf").write_bytes(b"")
    (tmp_path / "c.heic").write_bytes(b"")
    assert open_source(tmp_path).ids() == ["a.png", "x/b.png"]
    assert f"2 hidden or system folders ({junk})" in caplog.text
    assert "1 hidden image files" in caplog.text
    assert "2 files that are not images (.heic 1, .pdf 1)" in caplog.text


def test_what_was_left_out_is_said_where_nothing_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path / ".Trash" / "a.png")
    (tmp_path / "b.heic").write_bytes(b"")
    with pytest.raises(MmclError, match=r"neither tables .* nor images"):
        open_source(tmp_path)
    assert "left out: 1 hidden or system folders (.Trash), 1 files that are not images (.heic 1)" in caplog.text


def test_a_hidden_folder_that_is_asked_for_is_read(tmp_path: Path) -> None:
    draw(tmp_path / ".photos" / "a.png")
    assert open_source(tmp_path / ".photos").ids() == ["a.png"]


def test_names_that_are_no_utf_8_are_read(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 10)
    odd = os.fsdecode(b"caf\xe9.png")
    (draw(tmp_path / "b.png", 200)).rename(tmp_path / odd)
    (tmp_path / os.fsdecode(b"\xfcber")).mkdir()
    draw(tmp_path / "c.png", 100).rename(tmp_path / os.fsdecode(b"\xfcber") / "c 100%.png")
    rows = open_source(tmp_path)
    assert rows.ids() == ["a.png", "caf\\xe9.png", "\\xfcber/c 100%.png"]
    levels = [decode(image).getpixel((0, 0))[0] for image in rows.images("image", [0, 1, 2])]
    assert levels == [10, 200, 100]
    for name in rows.ids():
        name.encode()
    (tmp_path / odd).unlink()
    with pytest.raises(ValueError, match="no such file"):
        decode(rows.images("image", [1])[0])


def test_a_root_whose_name_is_no_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"f\xfcr")
    folder.mkdir()
    draw(tmp_path / "a.png", 9).rename(folder / "a.png")
    rows = open_source(folder)
    rows.name.encode()
    assert decode(rows.images("image", [0])[0]).getpixel((0, 0)) == (9, 0, 0)
    (folder / "t.csv").write_text("image\na.png\n")
    assert decode(open_source(folder / "t.csv").images("image", [0])[0]).getpixel((0, 0)) == (9, 0, 0)


def test_subfolders_are_labels_where_all_images_lie_in_several(tmp_path: Path) -> None:
    for name in ("cat/a.png", "cat/more/b.png", "dog/a.png"):
        draw(tmp_path / name)
    rows = open_source(tmp_path)
    assert rows.ids() == ["cat/a.png", "cat/more/b.png", "dog/a.png"]
    assert rows.texts("label") == ["cat", "cat", "dog"]
    draw(tmp_path / "c.png")
    assert "label" not in open_source(tmp_path).column_names


@pytest.mark.parametrize(
    "parts", [("train", "val"), ("Train", "test"), ("train", "validation", "test"), ("train2017", "val2017")]
)
def test_folders_called_as_splits_are_splits(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        for name in ("cat", "dog"):
            draw(tmp_path / part / name / f"{part}.png")
    draw(tmp_path / "__MACOSX" / "a.png")
    (tmp_path / "devkit").mkdir()
    rows = open_source(tmp_path, split=parts[1])
    assert rows.texts("label") == ["cat", "dog"]
    assert rows.ids() == [f"cat/{parts[1]}.png", f"dog/{parts[1]}.png"]
    with pytest.raises(MmclError, match=f"it has the splits {', '.join(sorted(parts))}; name one"):
        open_source(tmp_path)
    with pytest.raises(MmclError, match="no split 'none'; it has "):
        open_source(tmp_path, split="none")


def test_a_class_may_be_called_as_a_split(tmp_path: Path) -> None:
    for name in ("train", "car"):
        draw(tmp_path / name / "a.png")
    assert open_source(tmp_path).texts("label") == ["car", "train"]


def img2dataset(folder: Path) -> Path:
    """What img2dataset leaves by default: two shards, of which one image failed."""
    for shard in ("00000", "00001"):
        keys = [f"{shard}0000", f"{shard}0001", f"{shard}0002"]
        status = ["success", "failed_to_download" if shard == "00001" else "success", "success"]
        for key, state in zip(keys, status, strict=True):
            if state == "success":
                draw(folder / shard / f"{key}.jpg")
                (folder / shard / f"{key}.txt").write_text(f"caption {key}")
                described = {"caption": f"caption {key}", "url": "u", "key": key, "status": state}
                (folder / shard / f"{key}.json").write_text(json.dumps(described))
        pq.write_table(pa.table({"url": ["u"] * 3, "key": keys, "status": status}), folder / f"{shard}.parquet")
        had = status.count("success")
        (folder / f"{shard}_stats.json").write_text(json.dumps({"count": 3, "successes": had}))
    return folder


def test_the_default_folder_of_img2dataset(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = open_source(img2dataset(tmp_path))
    assert rows.column_names == ["id", "image", "text"]
    keys = ["000000000", "000000001", "000000002", "000010000", "000010002"]
    assert rows.ids() == [f"{key[:5]}/{key}.jpg" for key in keys]
    assert rows.texts("text") == [f"caption {key}" for key in keys]
    assert rows.images("image", [3]) == [tmp_path / "00001" / "000010000.jpg"]
    assert "1 of 6 images were not downloaded" in caplog.text
    with pytest.raises(MmclError, match="it has no splits"):
        open_source(tmp_path, split="00000_stats")
    for stats in tmp_path.glob("*_stats.json"):  # as of a download that was interrupted
        stats.unlink()
    assert len(open_source(tmp_path)) == len(keys)


def test_a_shard_of_img2dataset_is_no_folder_of_tables(tmp_path: Path) -> None:
    rows = open_source(img2dataset(tmp_path) / "00000")
    assert rows.ids() == ["000000000.jpg", "000000001.jpg", "000000002.jpg"]
    assert rows.texts("text")[0] == "caption 000000000"
    (tmp_path / "00000" / "000000000.txt").unlink()
    (tmp_path / "00000" / "000000001.txt").write_text(" \n")
    (tmp_path / "00000" / "000000002.json").write_text("{")
    rows = open_source(tmp_path / "00000")
    assert rows.texts("text") == [f"caption 00000000{number}" for number in range(3)]


def test_a_caption_in_json_that_is_damaged_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, described in [("a", '{"caption": "one"}'), ("b", "{"), ("c", "[1]"), ("d", '{"caption": 3}')]:
        draw(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.json").write_text(described)
    assert open_source(tmp_path).texts("text") == ["one", None, None, None]
    assert "1 caption files are not JSON" in caplog.text


def test_captions_are_read_whatever_the_case_of_their_suffix_and_those_of_no_image_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.png", "b.png", "c.png"):
        draw(tmp_path / name)
    (tmp_path / "a.TXT").write_text("one")
    (tmp_path / "b.txt").write_bytes("zwei ü".encode("utf-16"))
    (tmp_path / "c.Json").write_text('{"caption": "three"}')
    for name in ("c.png.txt", "d.txt"):
        (tmp_path / name).write_text("of nobody")
    assert open_source(tmp_path).texts("text") == ["one", "zwei ü", "three"]
    assert "2 files that are not images (.txt 2)" in caplog.text


def test_the_description_of_an_image_that_was_lost_is_no_table(tmp_path: Path) -> None:
    draw(tmp_path / "0.png")
    for name in ("0.json", "1.json"):
        (tmp_path / name).write_text('{"caption": "a cat"}')
    rows = open_source(tmp_path)
    assert (rows.ids(), rows.texts("text")) == (["0.png"], ["a cat"])
