"""Tar shards as rows: the same samples as a table of them, read as often as needed."""

from __future__ import annotations

import io
import logging
import tarfile
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from mmcl.data.images import decode
from mmcl.data.sources import open_source
from mmcl.data.sources.tar.rows import ShardRows, open_rows
from mmcl.data.sources.tar.write import write_shards
from mmcl.encoding import Columns, Layout, encode_source
from mmcl.evaluation.tasks.rows import diagnostics_of_rows, retrieval_of_rows, zero_shot_of_rows
from mmcl.runtime.errors import MmclError


class Colours:
    """Embeds an image by its mean colour, and the name of a colour by that."""

    dim, name, modalities = 3, "colours", ("image", "text")
    named: ClassVar = {"red": (255, 20, 20), "green": (20, 255, 20), "blue": (20, 20, 255)}

    def encode(self, inputs, modality=None, **settings):
        colours = [self.named[x.split()[-1]] if isinstance(x, str) else np.asarray(x).mean((0, 1)) for x in inputs]
        vectors = np.array(colours, dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def png(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 5), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def both(tmp_path):
    """The same rows as a folder of images, as tars and as a packed tar."""
    names, rows = ["red", "green", "blue", "red", "blue"], []
    (tmp_path / "images").mkdir()
    for number, name in enumerate(names):
        data = png(Colours.named[name])
        (tmp_path / "images" / f"{number}.png").write_bytes(data)
        (tmp_path / "images" / f"{number}.txt").write_text(name)
        rows.append({"__key__": str(number), "png": data, "txt": name, "json": {"class": name, "caption": name}})
    write_shards(rows, tmp_path / "tars", per_shard=2)
    import gzip

    (one,) = write_shards(rows, tmp_path / "one")
    (tmp_path / "packed.tar.gz").write_bytes(gzip.compress(one.read_bytes()))
    return open_source(tmp_path / "images"), [
        tmp_path / "tars",
        f"{tmp_path}/tars/{{00000..00002}}.tar",
        one,
        tmp_path / "packed.tar.gz",
    ]


@pytest.mark.parametrize("which", range(4))
def test_shards_give_the_vectors_and_scores_of_the_same_table(both, which, tmp_path):
    table, sources = both
    rows = open_rows(sources[which])
    assert isinstance(rows, ShardRows)
    assert len(rows) == 5
    assert rows.column_names == ["image", "text", "png", "txt", "json"]
    for column, batch in (("image", 2), ("text", 4)):
        theirs = encode_source(Colours(), table, column, tmp_path / f"table-{column}")
        ours = encode_source(Colours(), rows, column, tmp_path / f"shards-{column}", layout=Layout(batch_rows=batch))
        np.testing.assert_array_equal(
            np.concatenate([v for _, v in ours.iter_shards()]), np.concatenate([v for _, v in theirs.iter_shards()])
        )
        ids = [str(name) for names, _ in ours.iter_shards() for name in names]
        assert [name.split(":")[1] for name in ids] == list("01234")
    found, expected = (retrieval_of_rows(Colours(), each, bootstrap=0) for each in (rows, table))
    for way in expected:
        assert found[way].metrics == expected[way].metrics
    zero = zero_shot_of_rows(Colours(), rows, label="class", bootstrap=0)
    assert zero.metrics["top@1"] == 1.0
    named = encode_source(
        Colours(), rows, Columns("image", ids="class"), tmp_path / "named", layout=Layout(batch_rows=2)
    )
    assert named.ids().tolist() == ["red", "green", "blue", "red", "blue"]
    assert (
        diagnostics_of_rows(Colours(), open_rows(sources[which]), text=None).to_dict()
        == diagnostics_of_rows(Colours(), table, text=None).to_dict()
    )


def test_an_interrupted_encode_of_shards_goes_on_and_equals_one_that_was_left_alone(both, tmp_path):
    class Stops(Colours):
        left = 1

        def encode(self, inputs, *args, **settings):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            return super().encode(inputs, *args, **settings)

    source = both[1][0]
    settings = {"layout": Layout(shard_rows=2, batch_rows=2)}
    with pytest.raises(KeyboardInterrupt):
        encode_source(Stops(), open_rows(source), "image", tmp_path / "a", **settings)
    resumed = encode_source(Colours(), open_rows(source), "image", tmp_path / "a", **settings)
    alone = encode_source(Colours(), open_rows(source), "image", tmp_path / "b", **settings)
    for (ids, vectors), (others, expected) in zip(resumed.iter_shards(), alone.iter_shards(), strict=True):
        assert list(ids) == list(others)
        np.testing.assert_array_equal(vectors, expected)


def test_what_cannot_be_read_is_listed_and_damage_said(both, tmp_path, caplog):
    path = both[1][0] / "00001.tar"
    data = bytearray(path.read_bytes())
    data[data.index(b"\x89PNG") + 20] ^= 0xFF  # the image's header
    path.write_bytes(data)
    last = both[1][0] / "00002.tar"
    last.write_bytes(last.read_bytes()[:700])
    rows = open_rows(both[1][0])
    with caplog.at_level(logging.WARNING, "mmcl"):
        vectors = encode_source(Colours(), rows, "image", tmp_path / "v")
    assert [row["id"] for row in vectors.skipped["rows"]] == ["00001.tar:2"]
    assert "00002.tar: cannot be read, or not to its end: there is no end mark" in caplog.text
    assert len(vectors) == 4
    with pytest.raises(MmclError, match=r"00002\.tar: .*write the shard anew"):
        encode_source(Colours(), open_rows(both[1][0]), "image", tmp_path / "w", on_error="fail")


def test_of_an_unsorted_tar_each_sample_that_is_left_out_says_why(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("a.png", png("red")), ("b.png", png("red")), ("a.txt", b"red"), ("b.txt", b"red")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    vectors = encode_source(Colours(), open_rows(tmp_path / "a.tar"), "image", tmp_path / "v")
    assert len(vectors) == 2
    assert all("sort the tar by name" in row["reason"] for row in vectors.skipped["rows"])
    with pytest.raises(MmclError, match="sort the tar by name"):
        retrieval_of_rows(Colours(), open_rows(tmp_path / "a.tar"))


def test_shards_without_samples_are_refused(tmp_path):
    import tarfile

    for name in ("a.tar", "b.tar"):
        tarfile.open(tmp_path / name, "w").close()
    with pytest.raises(MmclError, match="the shards hold no samples"):
        open_rows(tmp_path).require(["image"])


def test_shards_have_no_splits_and_name_their_columns(both):
    source = both[1][0]
    with pytest.raises(MmclError, match="no splits"):
        open_rows(source, split="train")
    with pytest.raises(MmclError, match=r"no sample has a column 'webp'; they have json, png, txt"):
        open_rows(source).require(["webp"])
    rows = open_rows(source)
    assert [rows.modality(name) for name in ("image", "png;jpg", "text", "class")] == ["image", "image", "text", "text"]
    assert rows.texts("json.caption") == ["red", "green", "blue", "red", "blue"]
    assert decode(rows.images("png", range(4, 5))[0]).getpixel((0, 0)) == Colours.named["blue"]
    assert isinstance(open_rows(source.parent / "images"), type(both[0]))


def test_texts_that_cannot_be_read_and_files_out_of_order_are_said_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("mmcl.data.sources.tar.rows._logged", set())
    members = [
        ("a.txt", b"x"),
        ("a.txt", b"y"),
        ("b.txt", b"caf\xe9"),
        ("c.jpg", b""),
        ("d.txt", b"z"),
        ("c.txt", b"w"),
    ]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    rows = ShardRows(tmp_path / "a.tar")
    for _ in range(2):
        assert rows.texts("text") == [None, None, None, "z", "w"]
    assert [record.message for record in caplog.records] == [
        "a.tar:a: two files 'txt' with this key, of which one would be lost; give each its own key; of such samples it "
        "is as if there were none",
        "a.tar:c: its files do not stand one after the other, so that it is several samples; sort the tar by name, as "
        "tar --sort=name does",
    ]


@pytest.mark.parametrize("gone", ["00000", "00002"])
def test_an_encode_does_not_go_on_behind_a_shard_that_could_not_be_reached(both, tmp_path, monkeypatch, gone):
    from mmcl.data.sources.tar import rows as shard_rows

    monkeypatch.setattr(shard_rows, "is_local", lambda shard: False)  # as if they came over the network
    path = both[1][0] / f"{gone}.tar"
    content = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(MmclError, match=f"{gone}.tar: .*give the command again once it can be read"):
        encode_source(Colours(), open_rows(both[1][0]), "text", tmp_path / "out", layout=Layout(batch_rows=1))
    path.write_bytes(content)
    assert (
        len(encode_source(Colours(), open_rows(both[1][0]), "text", tmp_path / "out", layout=Layout(batch_rows=1))) == 5
    )
