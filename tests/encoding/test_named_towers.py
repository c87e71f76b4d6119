"""Models with several towers of one modality, which are encoded by name; and embeddings with gradient."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mmcl
from mmcl.config.data import ImageConfig
from mmcl.config.model import HeadConfig, ImageTowerConfig, TextTowerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.data.sources import open_source
from mmcl.encoding import Encoder, encode_source
from mmcl.formats.towers.image import build_image_tower
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.towers import Conventions, Towers
from mmcl.runtime.errors import MmclError

QUESTIONS = ["who let the dogs out", "where is the sea", "who let the dogs out", "why"]
ANSWERS = ["the baker did", "behind the house", "", "because of the two dogs and the very old cat"]


def text_embedder(vocabulary, prompts=None, dropout=0.0):
    settings = TextTowerConfig(layers=1, width=16, heads=2, dropout=dropout, prompts=prompts)
    tokenizer = train_tokenizer(vocabulary, settings.tokenizer.model_copy(update={"vocab_size": 60}), 20)
    return TextEmbedder(*build_text_tower(settings, tokenizer), Head(HeadConfig(), 16, 8))


def image_embedder():
    net = {"channels": [8, 8, 8, 8], "stem_width": 8}
    processor, tower = build_image_tower(ImageTowerConfig(name="timm:resnet10t", args=net), ImageConfig(size=32))
    return ImageEmbedder(processor, tower, Head(HeadConfig(), tower.width, 8))


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    question = text_embedder(QUESTIONS, {"query": "question: "})
    towers = Towers({"question": question, "answer": text_embedder(ANSWERS), "image": image_embedder()}, 8, "qa")
    encoder = Encoder(towers).eval()
    encoder.set_compute("float32")
    return encoder


def reference(encoder, name, texts, prompt=None):
    """A forward pass of one tower, text by text."""
    embedder = encoder.embedder(name)
    processor, tower = embedder.processor, embedder.tower
    with torch.no_grad():
        each = [embedder.head(tower(**processor.collate(processor.tokenize([text], prompt)[0]))) for text in texts]
    return F.normalize(torch.cat(each), dim=1).numpy()


def test_texts_are_encoded_by_the_tower_that_is_named(encoder):
    for name, texts in (("question", QUESTIONS), ("answer", ANSWERS)):
        np.testing.assert_allclose(encoder.encode(texts, modality=name), reference(encoder, name, texts), atol=1e-5)
        streamed = np.concatenate(list(encoder.encode_stream(texts, modality=name, chunk=2)))
        np.testing.assert_allclose(streamed, reference(encoder, name, texts), atol=1e-5)
    found = encoder.encode(QUESTIONS, modality="question", prompt="query")
    np.testing.assert_allclose(found, reference(encoder, "question", QUESTIONS, "query"), atol=1e-5)
    assert not np.allclose(encoder.encode("dogs", modality="question"), encoder.encode("dogs", modality="answer"))


def test_without_a_name_only_what_has_one_tower_is_encoded(encoder):
    image = np.zeros((40, 40, 3), np.uint8)
    np.testing.assert_array_equal(encoder.encode(image), encoder.encode(image, modality="image"))
    for call in (lambda: encoder.encode("dogs"), lambda: encoder.encode_stream(["dogs"]), encoder.prompt_text):
        with pytest.raises(MmclError, match="several text towers; name one: answer or question"):
            call()
    with pytest.raises(MmclError, match="use image or text or answer or question"):
        encoder.encode("dogs", modality="passage")
    with pytest.raises(MmclError, match="input 0 is a ndarray; text is a str"):
        encoder.encode([image], modality="answer")


def test_a_model_of_named_towers_is_saved_and_loaded(encoder, tmp_path):
    encoder.save(tmp_path / "model")
    again = mmcl.load(tmp_path / "model", dtype="float32")
    assert again.towers.names == ["answer", "image", "question"]
    for name, texts in (("question", QUESTIONS), ("answer", ANSWERS)):
        np.testing.assert_array_equal(again.encode(texts, modality=name), encoder.encode(texts, modality=name))
        assert again.prompt_text("query" if name == "question" else None, name) in ("question: ", "")
    assert again.fingerprint() == encoder.fingerprint()
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Texts of the tower 'answer'" in card
    assert 'modality="answer"' in card


def test_a_single_tower_of_another_name_is_a_sentence_transformers_folder_too(tmp_path):
    encoder = Encoder(Towers({"user": text_embedder(QUESTIONS)}, 8)).eval()
    encoder.set_compute("float32")
    encoder.save(tmp_path)
    assert (tmp_path / "modules.json").is_file()
    again = mmcl.load(tmp_path, dtype="float32")
    for modality in (None, "text", "user"):
        np.testing.assert_array_equal(again.encode(QUESTIONS, modality=modality), encoder.encode(QUESTIONS))


def test_worker_processes_encode_by_the_tower_that_is_named(encoder):
    here = encoder.encode(ANSWERS, modality="answer")
    np.testing.assert_allclose(encoder.encode(ANSWERS, modality="answer", devices=["cpu", "cpu"]), here, atol=1e-6)
    assert encoder.path is None


def test_a_corpus_is_encoded_by_the_tower_that_is_selected(encoder, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text\n" + "\n".join(["the baker did", "behind the house"]) + "\n")
    chosen = encoder.select("answer")
    assert (chosen.towers.names, chosen.dim, chosen.name) == (["answer"], 8, "qa")
    vectors = encode_source(chosen, open_source(path), "text", tmp_path / "vectors", show_progress=False)
    expected = reference(encoder, "answer", ["the baker did", "behind the house"])
    np.testing.assert_allclose(np.asarray(vectors), expected, atol=1e-5)
    assert next(chosen.parameters()) is next(encoder.embedder("answer").parameters())
    with pytest.raises(MmclError, match=r"rows\.csv: .*several text towers; name one: answer or question"):
        encode_source(encoder, open_source(path), "text", tmp_path / "both", show_progress=False)


def test_names_in_a_folder_that_lead_out_of_it_are_damage(encoder, tmp_path):
    encoder.save(tmp_path / "model")
    path = tmp_path / "model" / "mmcl.json"
    description = json.loads(path.read_text())
    description["towers"]["../answer"] = description["towers"].pop("answer")
    path.write_text(json.dumps(description))
    with pytest.raises(MmclError, match=r"mmcl\.json: damaged"):
        mmcl.load(tmp_path / "model")


@pytest.mark.parametrize("truncated", [None, 5])
def test_embed_equals_encode_before_normalising(encoder, truncated):
    encoder.towers.conventions = Conventions(truncate_dim=truncated)
    image = np.random.default_rng(0).integers(0, 256, (50, 30, 3), np.uint8)
    for inputs, modality, prompt in (
        (QUESTIONS, "question", "query"),
        (ANSWERS, "answer", None),
        ([image, image[:20]], None, None),
        ("why", "question", None),
        ([], "answer", None),
    ):
        expected = encoder.encode(inputs, modality=modality, normalize=False, prompt=prompt)
        found = encoder.embed(inputs, modality, prompt)
        assert found.shape == expected.shape
        assert found.requires_grad == bool(len(inputs))
        np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5)


def test_embed_keeps_the_order_of_mixed_inputs():
    torch.manual_seed(0)
    encoder = Encoder(Towers({"text": text_embedder(QUESTIONS), "image": image_embedder()}, 8)).eval()
    encoder.set_compute("float32")
    image = np.random.default_rng(0).integers(0, 256, (50, 30, 3), np.uint8)
    inputs = ["who", image, "why", image[:20]]
    expected = encoder.encode(inputs, normalize=False)
    np.testing.assert_allclose(encoder.embed(inputs).detach().numpy(), expected, atol=1e-5)


def test_a_step_by_the_gradient_of_embed_changes_what_encode_gives():
    torch.manual_seed(0)
    encoder = Encoder(Towers({"text": text_embedder(QUESTIONS, dropout=0.5)}, 8))
    encoder.set_compute("float32")
    texts, target = QUESTIONS[:2], torch.randn(2, 8)
    before = encoder.encode(texts)
    assert encoder.train().training
    assert not torch.equal(encoder.embed(texts), encoder.embed(texts))  # dropout
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        loss = (encoder.eval().embed(texts) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert np.abs(encoder.encode(texts) - before).max() > 0.1
    assert torch.equal(encoder.embed(texts), encoder.embed(texts))
