"""Captions as COCO and Flickr hand them out, and paths of images as tables write them."""

from __future__ import annotations

import gzip
import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from mmcl.data.sources import open_source
from mmcl.runtime.errors import MmclError


def draw(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path)


def coco(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [{"license": 1, "file_name": f"{n:012d}.jpg", "id": n, "height": 2} for n in (9, 25, 30)]
    said = [(25, "a giraffe"), (9, "food"), (25, "two giraffes"), (77, "nobody")]
    annotations = [{"image_id": image, "id": n, "caption": caption} for n, (image, caption) in enumerate(said)]
    content = {"info": {"year": 2014}, "images": images, "licenses": [], "annotations": annotations}
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("folder", ["annotations", "images", "train2014", "images/train2014"])
def test_cocos_captions_with_its_images_where_they_lie(
    tmp_path: Path, folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = coco(tmp_path / "annotations" / "captions_train2014.json")
    draw(*(tmp_path / folder / f"{n:012d}.jpg" for n in (9, 25, 30)))
    rows = open_source(file)
    assert rows.texts("text") == [["food"], ["a giraffe", "two giraffes"], []]
    assert rows.ids() == ["000000000009.jpg", "000000000025.jpg", "000000000030.jpg"]
    assert [image.is_file() for image in rows.images("image", [0, 1, 2])] == [True] * 3
    assert "1 captions are of images that it does not list" in caplog.text
    with pytest.raises(MmclError, match="COCO's files are one split each"):
        open_source(file, split="train")


def test_cocos_images_below_a_root(tmp_path: Path) -> None:
    file = coco(tmp_path / "captions_val2014.json")
    with pytest.raises(MmclError, match=r"its images are not there; looked for .*name their root"):
        open_source(file)
    draw(tmp_path / "elsewhere" / "val2014" / "000000000009.jpg")
    rows = open_source(file, root=tmp_path / "elsewhere")
    assert rows.images("image", [0]) == [tmp_path / "elsewhere" / "val2014" / "000000000009.jpg"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.txt", 'image,caption\na.jpg,A dog .\nb.jpg,"Two , ""big"" cats"\na.jpg,"A "good" dog, it is\n'),
        ("f.token.txt", 'a.jpg#0\tA dog .\nb.jpg#0\tTwo , "big" cats\na.jpg#1\t"A "good" dog, it is\n'),
        ("results.token", 'a.jpg#0\tA dog .\nb.jpg#0\tTwo , "big" cats\na.jpg#1\t"A "good" dog, it is\n'),
    ],
)
@pytest.mark.parametrize("folder", ["", "Images", "Flicker8k_Dataset"])
def test_flickrs_captions(tmp_path: Path, name: str, content: str, folder: str) -> None:
    (tmp_path / name).write_text(content)
    draw(tmp_path / folder / "a.jpg", tmp_path / folder / "b.jpg")
    rows = open_source(tmp_path / name)
    assert rows.ids() == ["a.jpg", "b.jpg"]
    assert rows.texts("text") == [["A dog .", '"A "good" dog, it is'], ['Two , "big" cats']]
    assert rows.images("image", [1]) == [tmp_path / folder / "b.jpg"]
    if name == "captions.txt":
        assert open_source(tmp_path).ids() == ["a.jpg", "b.jpg"]


def test_flickrs_lines_without_a_caption_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path / "a.jpg")
    (tmp_path / "captions.txt").write_text("image,caption\na.jpg,one\nb.jpg\n\na.jpg,\n")
    assert open_source(tmp_path / "captions.txt").texts("text") == [["one"]]
    assert "2 lines name no image with a caption, such as line 3" in caplog.text


def test_flickr30ks_table_of_vertical_bars(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "results.csv").write_text(
        "image_name| comment_number| comment\n"
        '1.jpg| 0| Two young guys , with "shaggy" hair .\n1.jpg| 1| "Two men , outside" .\n2.jpg| 4   A dog runs .\n'
    )
    rows = open_source(tmp_path / "results.csv")
    assert rows.column_names == ["image_name", "comment_number", "comment"]
    assert rows.column("image_name") == ["1.jpg", "1.jpg", "2.jpg"]
    assert rows.texts("comment") == ['Two young guys , with "shaggy" hair .', '"Two men , outside" .', None]
    assert "1 of 3 rows" in caplog.text


def test_paths_of_images_as_tables_write_them(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    draw(tmp_path / "x" / "a b.png", tmp_path / f"{composed}1.png", tmp_path / f"{apart}2.png", tmp_path / "c\\d.png")
    written = {
        "x\\a b.png": "x/a b.png",
        ".\\x\\a b.png": "x/a b.png",
        f"file://{tmp_path}/x/a%20b.png": "x/a b.png",
        (tmp_path / "x" / "a b.png").as_uri().replace("file://", "file://localhost"): "x/a b.png",
        f"{apart}1.png": f"{composed}1.png",
        f"{composed}2.png": f"{apart}2.png",
        "c\\d.png": "c\\d.png",
        f"file://{tmp_path}/missing.png": "missing.png",
        f"file://{tmp_path}/a#b?.png": "a#b?.png",
        "no\\where.png": "no\\where.png",
    }
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"image": path}) + "\n" for path in written))
    rows = open_source(tmp_path / "t.jsonl")
    found = [path.resolve() for path in rows.images("image", range(len(rows)))]
    assert found == [tmp_path / path for path in written.values()]


def test_a_root_is_where_paths_start(tmp_path: Path) -> None:
    draw(tmp_path / "images" / "a.png")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "t.csv").write_text("image,text\na.png,x\n")
    rows = open_source(tmp_path / "tables" / "t.csv", root=tmp_path / "images")
    assert rows.images("image", [0]) == [tmp_path / "images" / "a.png"]
    assert rows.select([0]).images("image", [0]) == [tmp_path / "images" / "a.png"]
    with pytest.raises(MmclError, match=r"nowhere: no such folder"):
        open_source(tmp_path / "tables" / "t.csv", root=tmp_path / "nowhere")


def test_a_folder_is_read_with_the_captions_that_lie_in_it(tmp_path: Path) -> None:
    coco(tmp_path / "coco" / "annotations" / "captions_val2014.json")
    flickr = tmp_path / "flickr"
    draw(tmp_path / "coco" / "val2014" / "000000000009.jpg", flickr / "Flicker8k_Dataset" / "a.jpg")
    for name in ("Flickr8k.token.txt", "Flickr8k.lemma.token.txt"):
        (flickr / name).write_text(f"a.jpg#0\t{name}\n")
    assert open_source(tmp_path / "coco", split="val2014").texts("text")[0] == ["food"]
    assert open_source(flickr).texts("text") == [["Flickr8k.token.txt"]]


@pytest.mark.parametrize("first", ["contributors", "annotations", "version"])
def test_cocos_captions_whatever_comes_first_and_compressed(tmp_path: Path, first: str) -> None:
    content = {first: "1.0", **json.loads(coco(tmp_path / "c.json").read_text())}
    (tmp_path / "c.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))
    draw(tmp_path / "000000000009.jpg")
    assert open_source(tmp_path / "c.json.gz").texts("text")[0] == ["food"]
