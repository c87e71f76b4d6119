"""Routers and CLIP models of sentence-transformers, against that library itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import mmcl
from mmcl.data.sources.beir import Beir
from mmcl.data.sources.tar.rows import open_rows
from mmcl.evaluation.tasks.text_retrieval import beir_retrieval
from mmcl.runtime.errors import MmclError

from .made import TEXTS, theirs, write
from .test_modules import modules, static


@pytest.fixture
def routed(library, plain, tmp_path):
    """Static vectors for queries, a transformer for documents, and layers behind both."""
    kinds = modules()
    torch.manual_seed(0)
    document = [kinds["Transformer"](str(plain["bert"]), max_seq_length=20), kinds["Pooling"](16, "mean")]
    router = kinds["Router"].for_query_document([static(kinds), kinds["Dense"](6, 16)], document)
    prompts = {"query": "red ", "document": "dog "}
    model = library.SentenceTransformer(modules=[router, kinds["Dense"](16, 8), kinds["Normalize"]()], prompts=prompts)
    model.save(str(tmp_path / "theirs"))
    return tmp_path / "theirs"


def test_each_route_is_a_tower(library, routed, tmp_path):
    model, encoder = theirs(library, routed), mmcl.load(routed, dtype="float32")
    encoder.save(tmp_path / "ours")
    for opened in (encoder, mmcl.load(tmp_path / "ours", dtype="float32")):
        assert opened.towers.names == ["document", "query"]
        np.testing.assert_allclose(opened.encode(TEXTS, "query", prompt="query"), model.encode_query(TEXTS), atol=1e-5)
        found = opened.encode(TEXTS, "document", prompt="document")
        np.testing.assert_allclose(found, model.encode_document(TEXTS), atol=1e-5)
        np.testing.assert_allclose(opened.encode(TEXTS), model.encode(TEXTS), atol=1e-5)  # by the default route
    again = theirs(library, tmp_path / "ours")
    np.testing.assert_allclose(again.encode_query(TEXTS), model.encode_query(TEXTS), atol=1e-5)
    np.testing.assert_allclose(again.encode_document(TEXTS), model.encode_document(TEXTS), atol=1e-5)
    np.testing.assert_allclose(again.encode(TEXTS), model.encode(TEXTS), atol=1e-5)
    (tmp_path / "ours" / "mmcl.json").unlink()  # now it is theirs alone
    found = mmcl.load(tmp_path / "ours", dtype="float32").encode(TEXTS, "query", prompt="query")
    np.testing.assert_allclose(found, model.encode_query(TEXTS), atol=1e-5)


def test_queries_and_documents_take_their_routes(library, routed, tmp_path):
    model = theirs(library, routed)
    texts = [text for text in TEXTS if text]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    encoder, rows = mmcl.load(routed, dtype="float32"), open_rows(str(tmp_path / "docs.jsonl"))
    ((_, stored),) = mmcl.encoding.encode_source(encoder, rows, "text", tmp_path / "vectors").iter_shards()
    np.testing.assert_allclose(stored, model.encode_document(texts), atol=1e-5)
    searcher = mmcl.Searcher(mmcl.Index.build(stored), encoder)
    (best,) = searcher.search(texts[0], k=1)
    scores = model.encode_document(texts) @ model.encode_query(texts[0])
    assert best.id == scores.argmax()
    assert best.score == pytest.approx(scores.max(), abs=1e-5)
    corpus = {str(number): text for number, text in enumerate(texts)}
    beir = Beir("routed", corpus, {"q": texts[0]}, {"q": {"2": 1.0}})
    place = int((scores > scores[2]).sum()) + 1
    assert beir_retrieval(encoder, beir, bootstrap=0).metrics["mrr"] == pytest.approx(1 / place)


def test_a_router_without_a_default_route_wants_one_named(routed):
    path = routed / "router_config.json"
    if not path.exists():
        path = next(routed.glob("*/router_config.json"))
    config = json.loads(path.read_text())
    config["parameters"] |= {"default_route": None, "allow_empty_key": False}
    write(path, config)
    encoder = mmcl.load(routed)
    with pytest.raises(MmclError, match="several text towers"):
        encoder.encode("a dog")
    config["parameters"]["route_mappings"] = {"(None, 'image')": "query"}
    write(path, config)
    with pytest.raises(MmclError, match="only routes of texts by task"):
        mmcl.load(routed)


@pytest.fixture
def clip(tmp_path):
    """A tiny CLIP as transformers saves it, with a tokenizer of letters."""
    letters = [f"{letter}{end}" for letter in "abcdefghijklmnopqrstuvwxyz!" for end in ("", "</w>")]
    vocabulary = {token: number for number, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = transformers.CLIPTokenizerFast(vocab=vocabulary, merges=[])
    text = {"vocab_size": len(vocabulary), "max_position_embeddings": 20, "bos_token_id": 54, "eos_token_id": 55}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=text | sizes, vision_config=vision, projection_dim=12)
    torch.manual_seed(0)
    net = transformers.CLIPModel(config)
    size = {"shortest_edge": 32}
    images = transformers.CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32})
    folder = tmp_path / "clip" / "0_CLIPModel"
    net.save_pretrained(folder)
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder)
    module = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    write(tmp_path / "clip" / "modules.json", [module])
    return tmp_path / "clip"


@pytest.mark.parametrize("saved_again", [False, True])
def test_both_halves_of_a_clip_open(library, clip, tmp_path, saved_again):
    """As old folders have it, and as that library writes it today."""
    model = theirs(library, clip)
    if saved_again:
        model.save(str(tmp_path / "again"))
        clip = tmp_path / "again"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    images, texts = [Image.fromarray(one) for one in pixels], ["a dog", "the red dog!", "cat"]
    encoder = mmcl.load(clip, dtype="float32")
    encoder.save(tmp_path / "ours")
    for opened in (encoder, mmcl.load(tmp_path / "ours", dtype="float32")):
        assert opened.modalities == {"image", "text"}
        np.testing.assert_allclose(opened.encode(texts, normalize=False), model.encode(texts), atol=1e-5)
        np.testing.assert_allclose(opened.encode(images, normalize=False), model.encode(images), atol=1e-5)
