"""An index in Milvus from the command line, beside one over FAISS of the same vectors."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

pytest.importorskip("pymilvus")

import mmcl
from mmcl.config.model import HeadConfig, TextTowerConfig, TokenizerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.data.sources import open_source
from mmcl.encoding import Columns, encode_source, open_vectors
from mmcl.encoding.encoder import Encoder
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.towers import Towers
from mmcl.retrieval import open_index

TEXTS = ["a red dog", "a blue car", "a green tree", "the red car", "two dogs and a tree", "a boat"]
ASKED = {
    "texts": ["a red dog", "two trees", "-k", "3"],
    "condition": ["a red dog", "--where", "price > 2 and colour = 'red'"],
    "like": ["--like", "c", "--like", "a"],
    "mix": ["--mix", "a red dog", "--mix", "id=b:0.5", "--mix", "a boat:-0.4"],
    "hybrid": ["dog tree", "--hybrid", "-k", "2"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Texts with columns, and their vectors by a model with prompts."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(vocab_size=40), 20)
    texts, text = build_text_tower(TextTowerConfig(layers=1, width=16, heads=2), tokenizer)
    texts.set_prompts({"query": "find ", "passage": "text: "})
    Encoder(Towers({"text": TextEmbedder(texts, text, Head(HeadConfig(), 16, 8))}, 8, "tiny")).save(folder / "model")
    columns = {"colour": ["red", "blue", "green", "red", None, None], "price": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
    pq.write_table(pa.table({"id": list("abcdef"), "text": TEXTS, **columns}), folder / "texts.parquet")
    encoder = mmcl.load(folder / "model", dtype="float32")
    encode_source(encoder, open_source(folder / "texts.parquet"), Columns("text", labels="text"), folder / "vectors")
    return folder


@pytest.fixture
def indexes(folder, tmp_path, mmcl_):
    """The folders of both indexes."""
    source, kept = str(folder / "texts.parquet"), ["--columns", "colour,price:number"]
    milvus = ["--to", "milvus", "--uri", str(tmp_path / "own.db"), "--spec", "FLAT"]
    for name, place in (("faiss", []), ("milvus", milvus)):
        build = ["index", "build", str(folder / "vectors"), "--out", str(tmp_path / name), *place]
        assert mmcl_(*build, *kept, "--from", source)[0] == 0
        assert mmcl_("index", "lexical", str(tmp_path / name), source)[0] == 0
    return tmp_path / "faiss", tmp_path / "milvus"


def search(mmcl_, index, query):
    """{query: results} of ``mmcl search --json``."""
    path = index.with_name("found.json")
    assert mmcl_("search", str(index), *query, "--dtype", "float32", "--json", str(path))[0] == 0
    return json.loads(path.read_text())


def test_searches_find_what_they_find_in_faiss(indexes, mmcl_):
    for query in ASKED.values():
        expected, found = (search(mmcl_, index, query) for index in indexes)
        assert expected.keys() == found.keys()
        for name in expected:
            (scores, rows), (scores_found, rows_found) = (
                ([row.pop("score") for row in results], results) for results in (expected[name], found[name])
            )
            assert rows
            assert rows_found == rows
            np.testing.assert_allclose(scores_found, scores, atol=1e-5)


def test_it_knows_the_model_and_is_changed(indexes, folder, mmcl_):
    _, index = indexes
    assert open_index(index).encoder == open_vectors(folder / "vectors").encoder
    assert mmcl_("index", "remove", str(index), "a")[0] == 0
    found = search(mmcl_, index, ["a red dog", "-k", "10"])["a red dog"]
    assert {row["id"] for row in found} == set("bcdef")
    assert (
        mmcl_("index", "add", str(index), str(folder / "vectors"), "--upsert", "--from", str(folder / "texts.parquet"))[
            0
        ]
        == 0
    )
    found = search(mmcl_, index, ["a red dog", "-k", "10"])["a red dog"]
    assert (len(found), {row["id"] for row in found}) == (6, set("abcdef"))
