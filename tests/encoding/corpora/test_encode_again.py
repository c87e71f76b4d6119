"""Encoding into a folder that holds vectors already: what goes on, what is tried again, what is refused."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mmcl.encoding import Layout, encode_source, open_vectors
from mmcl.encoding.corpora import shard
from mmcl.runtime.errors import MmclError

from . import hashed
from .hashed import TEXTS, HashEncoder, contents, expected, png, rows


@pytest.mark.parametrize("die_at", [0, 2, 3, 4, 6])
def test_a_killed_encode_given_again_ends_with_the_same_bytes(tmp_path, die_at):
    texts = [None if n in (3, 10, 31) else text for n, text in enumerate(TEXTS)]
    source = rows(tmp_path / "s", text=texts)
    settings = {"shard_rows": 10, "batch_rows": 5}
    command = [
        sys.executable,
        hashed.__file__,
        tmp_path / "s.parquet",
        tmp_path / "killed",
        json.dumps(settings),
        str(die_at),
    ]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    encoder = HashEncoder()
    encode_source(encoder, source, "text", tmp_path / "killed", layout=Layout(**settings))
    encode_source(HashEncoder(), source, "text", tmp_path / "uninterrupted", layout=Layout(**settings))
    assert contents(tmp_path / "killed") == contents(tmp_path / "uninterrupted")
    complete = max(0, (die_at - 2) // 2)  # at least: two blocks may wait to be written
    assert sum(count for count, _ in encoder.calls) <= 30 - 9 * complete + 8  # it did go on, after a probe
    stored = open_vectors(tmp_path / "killed")
    np.testing.assert_array_equal(stored.take(range(30)), expected([text for text in texts if text]))
    assert [entry["row"] for entry in stored.skipped["rows"]] == [3, 10, 31]


def test_a_finished_encode_given_again_encodes_nothing_but_a_probe(tmp_path):
    source = rows(tmp_path / "s", text=TEXTS)
    encode_source(HashEncoder(), source, "text", tmp_path / "out")
    before = contents(tmp_path / "out")
    encoder = HashEncoder()
    assert len(encode_source(encoder, source, "text", tmp_path / "out")) == 33
    assert encoder.calls == [(8, "text")]
    assert contents(tmp_path / "out") == before


def test_vectors_of_another_source_column_or_weights_are_not_continued(tmp_path):
    source = rows(tmp_path / "s", text=TEXTS, title=TEXTS)
    encode_source(HashEncoder(), source, "text", tmp_path / "out", layout=Layout(dtype="float16"))
    encode_source(HashEncoder(), source, "text", tmp_path / "out", layout=Layout(dtype="float16"))
    for changed, message in [
        ({"rows": rows(tmp_path / "other", text=TEXTS)}, r"another source \('.*s\.parquet', now '.*other\.parquet'\)"),
        ({"columns": "title"}, "another source: column"),
        ({"layout": Layout("float32")}, "another dtype"),
        ({"encoder": HashEncoder(seed=1)}, "other vectors for the first rows"),
    ]:
        call = {
            "encoder": HashEncoder(),
            "rows": source,
            "columns": "text",
            "out": tmp_path / "out",
            "layout": Layout("float16"),
        }
        with pytest.raises(MmclError, match=message):
            encode_source(**call | changed)


def test_vectors_of_a_split_or_of_a_table_that_has_changed_are_not_continued(tmp_path):
    def encode(split, texts):
        table = rows(tmp_path / "s", text=texts, split=["train", "test"] * (len(texts) // 2))
        return encode_source(HashEncoder(), table.of_split(split), "text", tmp_path / "out")

    encode("train", TEXTS[:20])
    with pytest.raises(MmclError, match=r"another source \('.*s\.parquet \(train\)', now '.*s\.parquet \(test\)'\)"):
        encode("test", TEXTS[:20])
    with pytest.raises(MmclError, match=r"another state of .*s\.parquet \(train\) \("):
        encode("train", TEXTS[:22])


@pytest.mark.parametrize("unusable", [8, 21])
def test_weights_are_compared_by_the_first_rows_that_have_vectors(tmp_path, unusable):
    source = rows(tmp_path / "s", text=[None] * unusable + TEXTS[unusable:])
    encode_source(HashEncoder(), source, "text", tmp_path / "out")
    encoder = HashEncoder()
    assert len(encode_source(encoder, source, "text", tmp_path / "out")) == 33 - unusable
    assert len(encoder.calls) == 1
    with pytest.raises(MmclError, match="other vectors for the first rows"):
        encode_source(HashEncoder(seed=1), source, "text", tmp_path / "out")


@pytest.mark.parametrize("share", [0.02, 0.05])
def test_vectors_that_were_begun_in_another_precision_are_the_models_own(tmp_path, share):
    """bfloat16 moves unit vectors of few dimensions by some 0.02; another model moves them further."""

    class Moved(HashEncoder):
        def vector(self, item):
            return super().vector(item) + np.float32(share / 4)  # in each of 16 dimensions

    source = rows(tmp_path / "s", text=TEXTS)
    encode_source(HashEncoder(), source, "text", tmp_path / "out")
    if share == 0.02:
        assert len(encode_source(Moved(), source, "text", tmp_path / "out")) == len(TEXTS)
    else:
        with pytest.raises(MmclError, match="other vectors for the first rows"):
            encode_source(Moved(), source, "text", tmp_path / "out")


def test_images_that_are_gone_do_not_keep_a_finished_encode_from_being_opened(tmp_path):
    (tmp_path / "red.png").write_bytes(png(200))
    source = rows(tmp_path / "s", file=["red.png"])
    encode_source(HashEncoder(), source, "file", tmp_path / "out")
    (tmp_path / "red.png").unlink()
    assert len(encode_source(HashEncoder(), source, "file", tmp_path / "out")) == 1


def test_an_interrupted_encode_says_where_it_goes_on(tmp_path):
    class Interrupted(HashEncoder):
        def encode(self, inputs, modality=None, **options):
            if len(self.calls) == 3:
                raise KeyboardInterrupt
            return super().encode(inputs, modality, **options)

    source = rows(tmp_path / "s", text=TEXTS)
    with pytest.raises(KeyboardInterrupt, match=r"given again, it encodes the [34] of 4 shards that are missing"):
        encode_source(Interrupted(), source, "text", tmp_path / "out", layout=Layout(shard_rows=10, batch_rows=5))
    assert (
        len(encode_source(HashEncoder(), source, "text", tmp_path / "out", layout=Layout(shard_rows=10, batch_rows=5)))
        == 33
    )


class Fingerprinted(HashEncoder):
    """Tells its weights, and where it lies."""

    def __init__(self, path, seed=0):
        super().__init__(seed=seed)
        self.path = path

    def fingerprint(self):
        return {"weights": str(self.seed), "prompt": ""}


def test_a_model_that_has_moved_goes_on_and_one_with_other_weights_does_not(tmp_path):
    source = rows(tmp_path / "s", text=TEXTS)
    encode_source(Fingerprinted(tmp_path / "a"), source, "text", tmp_path / "out")
    moved = Fingerprinted(tmp_path / "b")
    assert encode_source(moved, source, "text", tmp_path / "out").model == str(tmp_path / "b")
    assert moved.calls == []
    for path in ("a", "b"):
        with pytest.raises(MmclError, match="other weights"):
            encode_source(Fingerprinted(tmp_path / path, seed=1), source, "text", tmp_path / "out")


def test_a_model_is_found_where_it_lies_relative_to_its_vectors(tmp_path):
    (tmp_path / "here" / "model").mkdir(parents=True)
    source = rows(tmp_path / "s", text=TEXTS)
    encode_source(Fingerprinted(tmp_path / "here" / "model"), source, "text", tmp_path / "here" / "out")
    (tmp_path / "here").rename(tmp_path / "there")
    assert open_vectors(tmp_path / "there" / "out").model == str(tmp_path / "there" / "model")


def test_vectors_without_a_fingerprint_get_one_once_they_are_found_to_be_the_encoders(tmp_path):
    source = rows(tmp_path / "s", text=TEXTS)
    encoder = Fingerprinted(tmp_path / "a")
    encode_source(encoder, source, "text", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    for key in ("encoder", "near"):
        del manifest[key]
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    assert open_vectors(tmp_path / "out").encoder is None
    with pytest.raises(MmclError, match="other vectors for the first rows"):
        encode_source(Fingerprinted(tmp_path / "a", seed=1), source, "text", tmp_path / "out")
    assert encode_source(encoder, source, "text", tmp_path / "out").encoder == encoder.fingerprint() | {"documents": ""}


@pytest.fixture
def album(tmp_path):
    """Six image files, of which the last two are missing, and their rows."""
    for shade in range(4):
        (tmp_path / f"{shade}.png").write_bytes(png(shade))
    return rows(tmp_path / "s", file=[f"{shade}.png" for shade in range(6)])


def test_skipped_images_are_tried_again_when_asked_for(tmp_path, album, caplog):
    call = (Fingerprinted(tmp_path), album, "file", tmp_path / "out")
    assert encode_source(*call).ids().tolist() == ["0", "1", "2", "3"]
    (tmp_path / "4.png").write_bytes(png(4))
    assert len(encode_source(*call)) == 4
    stored = encode_source(*call, retry_skipped=True)
    assert stored.ids().tolist() == ["0", "1", "2", "3", "4"]
    np.testing.assert_array_equal(stored.take([4]), expected([Image.open(tmp_path / "4.png")]))
    assert [entry["row"] for entry in stored.skipped["rows"]] == [5]
    assert stored.skipped["count"] == 1
    assert stored.complete
    (tmp_path / "5.png").write_bytes(png(5))
    assert encode_source(*call, retry_skipped=True).skipped == {"count": 0, "rows": [], "ranges": []}
    open_vectors(tmp_path / "out").verify()
    caplog.set_level(logging.INFO)
    assert len(encode_source(*call, retry_skipped=True)) == 6
    assert "no skipped images to try again" in caplog.text


def test_an_encode_of_nothing_is_not_complete_and_tried_again(tmp_path):
    source = rows(tmp_path / "s", file=["0.png", "1.png"])
    call = (HashEncoder(), source, "file", tmp_path / "out")
    for _ in range(2):
        with pytest.raises(MmclError, match="nothing in column 'file' can be encoded"):
            encode_source(*call)
        with pytest.raises(MmclError, match="not finished"):
            open_vectors(tmp_path / "out")
    (tmp_path / "1.png").write_bytes(png(1))
    stored = encode_source(*call)
    assert (stored.ids().tolist(), stored.skipped["count"]) == (["1"], 1)


def test_a_folder_of_nothing_that_an_older_version_called_complete_is_tried_again(tmp_path):
    source = rows(tmp_path / "s", file=["0.png"])
    with pytest.raises(MmclError):
        encode_source(HashEncoder(), source, "file", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    manifest |= {"complete": True, "skipped": {"count": 1, "rows": [{"row": 0, "id": "0", "reason": "gone"}]}}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "0.png").write_bytes(png(0))
    stored = encode_source(HashEncoder(), source, "file", tmp_path / "out")
    assert (len(stored), stored.skipped["count"]) == (1, 0)


def test_images_replaced_under_an_unchanged_table_are_encoded_again(tmp_path, album):
    call = (Fingerprinted(tmp_path), album, "file", tmp_path / "out")
    encode_source(*call, layout=Layout(shard_rows=2, batch_rows=2))
    (tmp_path / "1.png").write_bytes(png(100))
    (tmp_path / "2.png").write_bytes(b"no image")
    for name in ("0.png", "1.png", "2.png"):
        os.utime(tmp_path / name, ns=(0, 10**18))
    stored = encode_source(*call)
    assert stored.ids().tolist() == ["0", "1", "3"]
    images = [Image.open(tmp_path / name) for name in ("0.png", "1.png", "3.png")]
    np.testing.assert_array_equal(np.asarray(stored), expected(images))
    assert [entry["row"] for entry in stored.skipped["rows"]] == [4, 5, 2]
    stored.verify()
    call[0].calls.clear()
    encode_source(*call)
    assert call[0].calls == []
    assert sorted(entry["row"] for entry in stored.rejects()) == [2, 4, 5]
    assert len(list((tmp_path / "out").iterdir())) == 6


class PromptEncoder(HashEncoder):
    """Takes a prompt and a number of dimensions."""

    def encode(self, inputs, modality=None, *, prompt=None, truncate_dim=None, **options):
        vectors = super().encode([f"{prompt or ''}{text}" for text in inputs], modality, **options)[:, :truncate_dim]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_vectors_behind_another_prompt_or_of_fewer_dimensions_are_not_continued(tmp_path):
    source = rows(tmp_path / "s", text=TEXTS)
    call = {"encoder": PromptEncoder(), "rows": source, "columns": "text", "out": tmp_path / "out"}
    stored = encode_source(**call, prompt="query", truncate_dim=8)
    assert stored.dim == 8
    assert stored.source["prompt"] == "query"
    again = PromptEncoder().encode(TEXTS, prompt="query", truncate_dim=8)
    np.testing.assert_allclose(stored.take(range(33)), again, atol=1e-6)
    assert len(encode_source(**call, prompt="query", truncate_dim=8)) == 33
    with pytest.raises(MmclError, match="another source: prompt"):
        encode_source(**call, truncate_dim=8)
    with pytest.raises(MmclError, match="another dim"):
        encode_source(**call, prompt="query")


class WordsEncoder(PromptEncoder):
    """Tells what it puts before texts: by default, or under a prompt's name."""

    def __init__(self, **words):
        super().__init__()
        self.words = words

    def prompt_text(self, prompt=None):
        return self.words[prompt or "default"]


def test_the_words_of_a_prompt_are_compared_where_the_encoder_tells_them(tmp_path):
    call = {"rows": rows(tmp_path / "s", text=TEXTS), "columns": "text"}
    for prompt, recorded in (("query", "find: "), (None, "read: ")):
        out = tmp_path / recorded
        encoder = WordsEncoder(query="find: ", default="read: ")
        assert encode_source(encoder, **call, out=out, prompt=prompt).source["prompt"] == recorded
        with pytest.raises(MmclError, match=f"another source: prompt \\('{recorded}', now 'seek: '\\)"):
            encode_source(WordsEncoder(query="seek: ", default="seek: "), **call, out=out, prompt=prompt)


def test_a_full_disk_passes_through_and_the_encode_goes_on_when_there_is_space(tmp_path, monkeypatch):
    source = rows(tmp_path / "s", text=TEXTS)
    with monkeypatch.context() as patch:
        write_table, written = shard.write_table, []

        def fills_up(path, table):
            if written:
                raise OSError(errno.ENOSPC, "No space left on device")
            written.append(path)
            write_table(path, table)

        patch.setattr(shard, "write_table", fills_up)
        with pytest.raises(OSError, match="No space left"):
            encode_source(HashEncoder(), source, "text", tmp_path / "out", layout=Layout(shard_rows=10))
    names = ["manifest.json", "shard-00000.ids.parquet", "shard-00000.json", "shard-00000.npy"]
    assert sorted(contents(tmp_path / "out")) == names
    assert len(encode_source(HashEncoder(), source, "text", tmp_path / "out", layout=Layout(shard_rows=10))) == 33
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["complete"]
