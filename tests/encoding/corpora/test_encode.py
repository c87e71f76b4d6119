"""A column of a table, or of tar shards, to vectors on disk."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from mmcl.encoding import Columns, Layout, VectorWriter, encode_source, open_vectors
from mmcl.models.text.embedder import TextEmbedder
from mmcl.runtime.errors import MmclError

from .hashed import TEXTS, HashEncoder, expected, png, rows


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
    assert [len(ids) for ids, _ in stored.iter_shards()] == [10, 10, 10, 3]
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
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert lines == list(stored.rejects()) == stored.skipped["rows"]
    assert all(line["reason"] for line in lines)


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


def test_a_slow_encode_loses_no_more_than_its_last_seconds(tmp_path):
    writer_ = VectorWriter(tmp_path / "out", dim=16, model=None, shard_seconds=0)
    for start in (0, 10):
        writer_.append(range(start, start + 10), expected(TEXTS[:10]))
    assert [len(ids) for ids, _ in open_vectors(tmp_path / "out", partial=True).iter_shards()] == [10, 10]


def test_mmcls_own_encoder_tells_the_words_of_its_prompts(tmp_path):
    from mmcl.config.model import HeadConfig, TextTowerConfig, TokenizerConfig  # here: the killed processes need none
    from mmcl.data.processors.train_tokenizer import train_tokenizer
    from mmcl.encoding.encoder import Encoder
    from mmcl.formats.towers.text import build_text_tower
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
        (["a"], {"columns": Columns("text", "question")}, r"modality is 'question'.*encoder\.select\(name\)"),
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
