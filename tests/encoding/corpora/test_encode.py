import errno
import hashlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmcl.data.sources import open_source
from mmcl.encoding import Columns, Layout, VectorWriter, encode_source, open_vectors
from mmcl.encoding.corpora import writer
from mmcl.models.text.embedder import TextEmbedder
from mmcl.runtime.errors import MmclError

TEXTS = [f"sentence number {n}" for n in range(33)]


class HashEncoder:
    """Its vectors are a hash of the input; it can be told to kill its process."""

    dim, name = 16, "hash"

    def __init__(self, modalities=("text", "image"), seed=0, die_at=None):
        self.modalities, self.seed, self.die_at = set(modalities), seed, die_at
        self.calls = []

    def encode(self, inputs, modality=None, *, normalize=True, show_progress=None):
        if len(self.calls) == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.calls.append((len(inputs), modality))
        return np.stack([self.vector(item) for item in inputs])

    def vector(self, item):
        content = item.encode() if isinstance(item, str) else np.asarray(item).tobytes()
        seed = int.from_bytes(hashlib.blake2b(content, digest_size=4).digest(), "little")
        vector = np.random.default_rng([seed, self.seed]).normal(size=self.dim).astype("float32")
        return vector / np.linalg.norm(vector)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "cache"))


def rows(path: Path, **columns):
    pq.write_table(pa.table(columns), path.with_suffix(".parquet"))
    return open_source(path.with_suffix(".parquet"))


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def expected(inputs) -> np.ndarray:
    return np.stack([HashEncoder().vector(item) for item in inputs])


def test_texts_become_vectors_in_order_with_ids_and_labels(tmp_path):
    encoder = HashEncoder()
    texts = [*TEXTS[:32], "a long text " * 50]
    source = rows(tmp_path / "s", id=[f"r{n}" for n in range(33)], text=texts)
    stored = encode_source(encoder, source, "text", tmp_path / "out", layout=Layout(shard_rows=10, batch_rows=4))
    np.testing.assert_array_equal(stored.take(range(33)), expected(texts))
    assert stored.ids().tolist() == source.ids()
    labels = stored.table()["label"].to_pylist()
    assert labels[:32] == TEXTS[:32]
    assert len(labels[32]) <= 200
    assert [len(ids) for ids, _ in stored.iter_shards()] == [12, 12, 9]
    assert {kind for _, kind in encoder.calls} == {"text"}
    assert stored.model == "hash"
    assert stored.source["fingerprint"] == source.fingerprint


def test_unreadable_images_and_empty_cells_are_skipped_counted_and_listed(tmp_path, caplog):
    shades = [10, 20, 30, 40]
    cells = [png(10), b"not an image", png(20), None, png(30), png(40)[:40], png(40)]
    source = rows(tmp_path / "s", image=cells, name=["a", "b", "c", "d", "e", "f", "g"])
    with caplog.at_level(logging.WARNING, "mmcl"):
        stored = encode_source(
            HashEncoder(), source, Columns("image", labels="name"), tmp_path / "out", layout=Layout(batch_rows=2)
        )
    images = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in shades]
    np.testing.assert_array_equal(stored.take(range(4)), expected(images))
    assert stored.ids().tolist() == ["0", "2", "4", "6"]
    assert stored.table()["label"].to_pylist() == ["a", "c", "e", "g"]
    assert stored.skipped["count"] == 3
    assert [(entry["row"], entry["id"]) for entry in stored.skipped["rows"]] == [(1, "1"), (3, "3"), (5, "5")]
    assert len(caplog.records) == 1
    assert "skipped 3" in caplog.text


def test_fail_stops_at_the_row_that_cannot_be_used(tmp_path):
    source = rows(tmp_path / "s", text=["a", "b", " "])
    with pytest.raises(MmclError, match=r"row 2 \(id '2'\), column 'text': empty text"):
        encode_source(HashEncoder(), source, "text", tmp_path / "out", on_error="fail")


def test_every_text_of_a_list_gets_a_vector_under_its_rows_id(tmp_path):
    source = rows(tmp_path / "s", captions=[["a", "b"], [], ["c", ""], None])
    stored = encode_source(HashEncoder(), source, "captions", tmp_path / "out")
    assert stored.ids().tolist() == ["0", "0", "2"]
    np.testing.assert_array_equal(stored.take(range(3)), expected(["a", "b", "c"]))
    assert [entry["row"] for entry in stored.skipped["rows"]] == [1, 2, 3]


def test_ids_come_from_the_column_that_is_named_and_the_manifest_says_so(tmp_path):
    source = rows(tmp_path / "s", text=["a", "b", "c"], id=["x", "y", "z"], sku=[7, 8, 9])
    stored = encode_source(
        HashEncoder(), source, Columns("text", ids="sku"), tmp_path / "out", layout=Layout(batch_rows=2)
    )
    assert stored.ids().tolist() == ["7", "8", "9"]
    assert stored.source["id_column"] == "sku"
    with pytest.raises(MmclError, match=r"another source: id_column \('sku', now None\)"):
        encode_source(HashEncoder(), source, "text", tmp_path / "out")


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["a", "b", None], "row 2 has no id"),
        (["a", "b", ""], "row 2 has no id"),
        ([1.0, 2.0, float("nan")], "row 2 has no id"),
        ([["a"], ["b"], ["c"]], "column 'sku' holds list, where ids are text or numbers"),
    ],
)
def test_rows_without_an_id_in_the_column_that_is_named_are_reported(tmp_path, ids, said):
    source = rows(tmp_path / "s", text=["a", "b", "c"], sku=ids)
    with pytest.raises(MmclError, match=said):
        encode_source(HashEncoder(), source, Columns("text", ids="sku"), tmp_path / "out", layout=Layout(batch_rows=2))


def test_paths_of_images_are_found_from_the_tables_folder_and_become_labels(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "red.png").write_bytes(png(200))
    source = rows(tmp_path / "s", file=["images/gone.png", "images/red.png"])
    encoder = HashEncoder()
    stored = encode_source(encoder, source, "file", tmp_path / "out")
    assert encoder.calls == [(1, "image")]
    assert stored.table()["label"].to_pylist() == [str(tmp_path / "images" / "red.png")]
    assert "gone.png" in stored.skipped["rows"][0]["reason"]


@pytest.mark.parametrize(
    ("cells", "modality"),
    [
        (["a cat", "a dog"], "text"),
        ([None, "", "a cat " * 1000], "text"),
        ([["a", "b"]], "text"),
        (["x.png", "y.JPG"], "image"),
        ([None, png(1)], "image"),
        ([{"bytes": png(1), "path": None}], "image"),
    ],
)
def test_the_modality_is_what_the_column_holds(tmp_path, cells, modality):
    (other,) = {"text", "image"} - {modality}
    with pytest.raises(MmclError, match=f"column 'c' holds {modality}s, model 'hash' embeds {other} only"):
        encode_source(HashEncoder([other]), rows(tmp_path / "s", c=cells), "c", tmp_path / "out")


@pytest.mark.parametrize(
    ("cells", "held"),
    [([7, None], "numbers read as text"), ([[0.5], []], "numbers read as text"), (["7", "8"], "text")],
)
def test_numbers_are_encoded_as_text_and_said_to_be(tmp_path, caplog, cells, held):
    caplog.set_level(logging.INFO, "mmcl")
    encode_source(HashEncoder(), rows(tmp_path / "s", c=cells), "c", tmp_path / "out")
    assert caplog.text.count(f"(column 'c', {held})") == 1


@pytest.mark.parametrize("die_at", [0, 2, 3, 4, 6])
def test_a_killed_encode_given_again_ends_with_the_same_bytes(tmp_path, die_at):
    texts = [None if n in (3, 10, 31) else text for n, text in enumerate(TEXTS)]
    source = rows(tmp_path / "s", text=texts)
    settings = {"shard_rows": 10, "batch_rows": 5}
    command = [sys.executable, __file__, tmp_path / "s.parquet", tmp_path / "killed", json.dumps(settings), str(die_at)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    encoder = HashEncoder()
    encode_source(encoder, source, "text", tmp_path / "killed", layout=Layout(**settings))
    encode_source(HashEncoder(), source, "text", tmp_path / "uninterrupted", layout=Layout(**settings))
    assert contents(tmp_path / "killed") == contents(tmp_path / "uninterrupted")
    assert sum(count for count, _ in encoder.calls) <= 30 - max(0, die_at - 3) * 5 + 8  # it did go on, after a probe
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
        ({"rows": rows(tmp_path / "other", text=TEXTS)}, "another source: fingerprint"),
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


def test_a_second_encode_into_one_folder_at_once_is_refused(tmp_path):
    source = rows(tmp_path / "s", text=TEXTS)
    refused = []

    class Twice(HashEncoder):
        def encode(self, *arguments, **options):
            with pytest.raises(MmclError, match="is encoding into this folder") as error:
                encode_source(HashEncoder(), source, "text", tmp_path / "out")
            refused.append(error)
            return super().encode(*arguments, **options)

    stored = encode_source(Twice(), source, "text", tmp_path / "out")
    np.testing.assert_array_equal(stored.take(range(33)), expected(TEXTS))
    assert refused


def test_an_interrupted_encode_says_where_it_goes_on(tmp_path):
    class Interrupted(HashEncoder):
        def encode(self, inputs, modality=None, **options):
            if len(self.calls) == 3:
                raise KeyboardInterrupt
            return super().encode(inputs, modality, **options)

    source = rows(tmp_path / "s", text=TEXTS)
    with pytest.raises(KeyboardInterrupt, match="interrupted; given again, it goes on at row 15 of 33"):
        encode_source(Interrupted(), source, "text", tmp_path / "out", layout=Layout(shard_rows=10, batch_rows=5))
    assert (
        len(encode_source(HashEncoder(), source, "text", tmp_path / "out", layout=Layout(shard_rows=10, batch_rows=5)))
        == 33
    )


def test_a_slow_encode_loses_no_more_than_its_last_seconds(tmp_path):
    writer_ = VectorWriter(tmp_path / "out", dim=16, model=None, shard_seconds=0)
    for start in (0, 10):
        writer_.append(range(start, start + 10), expected(TEXTS[:10]))
    assert [len(ids) for ids, _ in open_vectors(tmp_path / "out", partial=True).iter_shards()] == [10, 10]


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
    assert encode_source(encoder, source, "text", tmp_path / "out").encoder == encoder.fingerprint()


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
    assert len(list((tmp_path / "out").iterdir())) == 5


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


def test_mmcls_own_encoder_tells_the_words_of_its_prompts(tmp_path):
    from mmcl.config.model import HeadConfig, TextTowerConfig, TokenizerConfig  # here: the killed processes need none
    from mmcl.data.processors.train_tokenizer import train_tokenizer
    from mmcl.encoding.encoder import Encoder
    from mmcl.formats.text_towers import build_text_tower
    from mmcl.models.heads import Head
    from mmcl.models.towers import Towers

    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(vocab_size=40), 32)
    processor, tower = build_text_tower(TextTowerConfig(layers=1, width=16, heads=2), tokenizer)
    processor.set_prompts({"query": "find: ", "passage": "read: "}, "passage")
    encoder = Encoder(Towers({"text": TextEmbedder(processor, tower, Head(HeadConfig(), 16, 8))}, 8))
    call = {"encoder": encoder, "rows": rows(tmp_path / "s", text=TEXTS), "columns": "text"}
    for prompt, words in ((None, "read: "), ("query", "find: ")):
        assert encoder.prompt_text(prompt) == words
        assert encode_source(**call, out=tmp_path / words, prompt=prompt).source["prompt"] == words
    assert "prompt" not in encode_source(**call, out=tmp_path / "none", prompt="").source
    with pytest.raises(MmclError, match="prompt 'qery': the model has no prompt of that name"):
        encode_source(**call, out=tmp_path / "qery", prompt="qery")


@pytest.mark.parametrize(
    ("cells", "options", "message"),
    [
        (["a"], {"columns": "txt"}, "no column 'txt'.*did you mean 'text'"),
        (["a"], {"columns": Columns("text", labels="nam")}, "no column 'nam'"),
        (["a"], {"layout": Layout(batch_rows=-1)}, "batch_rows is -1"),
        (["a"], {"truncate_dim": True}, "truncate_dim is True"),
        (["a"], {"truncate_dim": 17}, "truncate_dim is 17; it must be between 1 and the model's 16"),
        (["", None], {}, r"nothing in column 'text' can be encoded \(row 0"),
    ],
)
def test_mistakes_are_answered_in_one_line(tmp_path, cells, options, message):
    with pytest.raises(MmclError, match=message):
        encode_source(
            **{"encoder": HashEncoder(), "rows": rows(tmp_path / "s", text=cells), "columns": "text"} | options,
            out=tmp_path / "out",
        )


def test_a_full_disk_passes_through_and_the_encode_goes_on_when_there_is_space(tmp_path, monkeypatch):
    source = rows(tmp_path / "s", text=TEXTS)
    with monkeypatch.context() as patch:
        write_table, written = writer.write_table, []

        def fills_up(path, table):
            if written:
                raise OSError(errno.ENOSPC, "No space left on device")
            written.append(path)
            write_table(path, table)

        patch.setattr(writer, "write_table", fills_up)
        with pytest.raises(OSError, match="No space left"):
            encode_source(HashEncoder(), source, "text", tmp_path / "out", layout=Layout(shard_rows=10))
    assert sorted(contents(tmp_path / "out")) == ["manifest.json", "shard-00000.ids.parquet", "shard-00000.npy"]
    assert len(encode_source(HashEncoder(), source, "text", tmp_path / "out", layout=Layout(shard_rows=10))) == 33
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["complete"]


if __name__ == "__main__":  # the process that is killed
    table, out, settings, die_at = sys.argv[1:]
    encode_source(
        HashEncoder(die_at=int(die_at)), open_source(table), "text", out, layout=Layout(**json.loads(settings))
    )
