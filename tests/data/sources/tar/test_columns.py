"""What a role is in a sample: the first of several files, or a field of the JSON one."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from mmcl.data.images import PreparedImage, decode, load_pixels, resize
from mmcl.data.sources.tar.columns import ShardColumn, require_columns, shard_captions
from mmcl.data.sources.tar.read import Sample
from mmcl.data.sources.tar.stream import SampleError
from mmcl.data.sources.tar.write import write_shards
from mmcl.runtime.errors import MmclError


def sample(**files):
    return Sample("a.tar", "k", {name.replace("_", "."): content for name, content in files.items()})


@pytest.mark.parametrize(
    ("extensions", "files", "captions"),
    [
        (None, {"txt": "\ufeff größer \n".encode()}, ["größer"]),
        (None, {"json": b'{"caption": "a", "text": "b"}'}, ["a"]),
        (None, {"json": b'{"text": ["a", null, " ", "b"]}'}, ["a", "b"]),
        (None, {"txt": b"a", "json": b"broken"}, ["a"]),
        ("json.label", {"json": b'{"label": 7}'}, ["7"]),
        ("caption.txt;txt", {"txt": b"a", "caption_txt": b"b"}, ["b"]),
        (".TXT", {"txt": b"a"}, ["a"]),
        ("captions.json", {"captions_json": b'["a", "b"]'}, ["a", "b"]),
        ("json.title; txt", {"txt": b"a", "json": b'{"title": null}'}, ["a"]),
    ],
)
def test_captions_are_found(extensions, files, captions):
    assert ShardColumn("text", "text", extensions).captions(sample(**files)) == captions


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"png": b""}, "no txt;json.caption;json.text; the sample has png"),
        ({"txt": b" \n"}, "no text"),
        ({"txt": b"\xff\xfe"}, "not UTF-8"),
        ({"json": b"{"}, "not JSON"),
        ({"json": b"[1]"}, "no txt"),
        ({"json": b'{"caption": []}'}, "no text"),
        ({"json": b'{"caption": {"en": "a"}}'}, "name one of its fields"),
    ],
)
def test_a_caption_that_cannot_be_used_says_why(files, reason):
    with pytest.raises(SampleError, match=reason) as error:
        ShardColumn("text", "text").captions(sample(**files))
    assert error.value.role == "text"


def squashed(image):
    return PreparedImage(load_pixels(image, 16, "squash"))


def test_an_image_is_what_decoding_and_resizing_give():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)).save(buffer, "jpeg")
    data = buffer.getvalue()
    column = ShardColumn("image", "image")
    expected = resize(decode(data, target=16), 16, "squash")
    assert np.array_equal(column.image(sample(jpeg=data, txt=b"a"), squashed), expected)
    with pytest.raises(SampleError, match="image"):
        column.image(sample(jpg=data[:500]), squashed)
    with pytest.raises(SampleError, match=r"no jpg;.*the sample has txt"):
        column.image(sample(txt=b"a"), squashed)


def test_a_column_that_no_sample_has_is_refused_before_the_run(tmp_path):
    rows = [{"cls": 1, "txt": "a"}, {"json": {"text": "b"}}, {"txt": " "}, {"json": {"text": ["c", "d"]}}]
    shards = [str(path) for path in write_shards(rows, tmp_path, per_shard=3)]
    text = ShardColumn("text", "text")
    require_columns(shards, [text])
    require_columns(["https://example.org/a.tar"], [ShardColumn("text", "text", "nothing")])
    with pytest.raises(MmclError, match=r"^00000\.tar: no sample has png for 'image'; they have cls, json, txt; name"):
        require_columns(shards, [text, ShardColumn("image", "image", "png")])
    assert list(shard_captions(shards, text)) == ["a", "b", "c", "d"]
    assert sorted(text.files) == ["json", "json.caption", "json.text", "txt"]


@pytest.mark.parametrize("blank", [b"", b" \n", b"\xef\xbb\xbf"])
def test_a_blank_text_file_does_not_hide_the_caption_in_the_json(blank):
    both = sample(txt=blank, json=b'{"caption": "a cat"}')
    assert ShardColumn("text", "text").captions(both) == ["a cat"]
    with pytest.raises(SampleError, match="no text"):
        ShardColumn("text", "text").captions(sample(txt=blank, json=b'{"caption": null}'))
    assert ShardColumn("score", "number", "cls;json.score").number(sample(cls=blank, json=b'{"score": 2}')) == 2


def tar_of(path, names):
    with tarfile.open(path, "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
    return str(path)


@pytest.mark.parametrize(
    ("names", "cure"),
    [
        (["a.jpg", "b.jpg", "a.txt", "b.txt"], "sort the tar by name"),
        ([f"{n}.jpg" for n in range(150)] + [f"{n}.txt" for n in range(150)], "sort the tar by name"),
        (["a.v1.jpg", "a.v1.txt", "b.v1.jpg", "b.v1.txt"], r"rename it, for example to a_v1\.jpg"),
        (["img.2021.01.jpg", "img.2021.01.txt"], r"rename it, for example to img_2021_01\.jpg"),
        (["a.png.txt", "a.png"], r"rename it, for example to a_png\.txt"),
        (["a.jpg", "a.cap"], r"name what to read as data\.columns\.text"),
    ],
)
def test_columns_that_are_missing_are_explained_by_the_order_and_the_names_of_files(tmp_path, names, cure):
    with pytest.raises(MmclError, match=cure):
        require_columns(
            [tar_of(tmp_path / "a.tar", names)], [ShardColumn("image", "image"), ShardColumn("text", "text")]
        )


def test_captions_of_shards_that_cannot_be_read_end_in_the_reason(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"<html>not found</html>")
    with pytest.raises(MmclError, match=r"a\.tar: .*none gave a text"):
        list(shard_captions([str(tmp_path / "a.tar")], ShardColumn("text", "text")))
    doubled = tar_of(tmp_path / "b.tar", ["a.txt", "a.txt", "b.txt"])
    assert list(shard_captions([doubled], ShardColumn("text", "text"))) == ["x"]


def test_json_without_end_and_numbers_without_bound_are_errors_of_the_sample():
    with pytest.raises(SampleError, match="nested too deeply"):
        ShardColumn("text", "text").captions(sample(json=b"[" * 100_000))
    for number in (b"1" + b"0" * 400, b"1e39", b"-1e39", b"NaN"):
        with pytest.raises(SampleError, match="no number"):
            ShardColumn("score", "number", "json.score").number(sample(json=b'{"score": ' + number + b"}"))


@pytest.mark.parametrize("extension", ["jfif", "jpe", "ppm"])
def test_images_are_found_by_their_other_extensions(extension):
    assert ShardColumn("image", "image").stands_in(sample(**{extension: b""}))
