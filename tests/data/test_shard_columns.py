"""What a role is in a sample: the first of several files, or a field of the JSON one."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mmcl.data.images import PreparedImage, decode, load_pixels, resize
from mmcl.data.shard_columns import ShardColumn, require_columns, shard_captions
from mmcl.data.shard_stream import SampleError
from mmcl.data.shards import Sample, write_shards
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


def test_a_picture_is_what_decoding_and_resizing_give():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)).save(buffer, "jpeg")
    data = buffer.getvalue()
    column = ShardColumn("image", "image")
    expected = resize(decode(data, target=16), 16, "squash")
    assert np.array_equal(column.picture(sample(jpeg=data, txt=b"a"), squashed), expected)
    with pytest.raises(SampleError, match="image"):
        column.picture(sample(jpg=data[:500]), squashed)
    with pytest.raises(SampleError, match=r"no jpg;.*the sample has txt"):
        column.picture(sample(txt=b"a"), squashed)


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
