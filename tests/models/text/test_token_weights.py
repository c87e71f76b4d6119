"""Tokens that do not count alike in the mean: where they start, what they do, and that other libraries agree."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mmcl
from mmcl.config.model import HeadConfig, TextTowerConfig, TokenizerConfig
from mmcl.data.processors.text import TextProcessor
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.encoding.encoder import Encoder
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.text.token_weights import TokenWeights
from mmcl.models.text.tower import TextTower
from mmcl.models.towers import Towers

TEXTS = ["the cat sat on the mat", "a dog ran over the hill", "the the the hill", "cats and dogs", "over"] * 8


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, TokenizerConfig(vocab_size=60), 32)


@pytest.fixture
def encoder(tokenizer) -> Encoder:
    torch.manual_seed(0)
    config = TextTowerConfig(layers=1, width=16, heads=2, token_weights=0.01)
    processor, tower = build_text_tower(config, tokenizer)
    head = Head(HeadConfig(), 16, 8)
    encoder = Encoder(Towers({"text": TextEmbedder(processor, tower, head)}, 8, "weighted")).eval()
    encoder.set_compute("float32")
    return encoder


def test_weights_start_from_the_frequencies_of_the_pieces(tokenizer):
    weights = TokenWeights.smooth_inverse_frequency(tokenizer, 0.01).values()
    ids = np.concatenate([tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS])
    pieces, counts = np.unique(ids, return_counts=True)
    frequencies = counts / counts.sum()
    # The unigram model's own probabilities are of all the ways to split a text, not of the best one alone.
    assert np.corrcoef(weights[pieces], 0.01 / (0.01 + frequencies))[0, 1] > 0.8
    assert ((weights > 0) & (weights < 1)).all()
    assert weights[tokenizer.bos_token_id] == pytest.approx(0.01 / 1.01)  # in every text


def test_features_are_the_weighted_mean_of_the_states(encoder):
    processor, tower = encoder.embedder("text").processor, encoder.embedder("text").tower
    inputs = processor.collate(processor.tokenize(TEXTS[:5])[0])
    with torch.no_grad():
        states = tower.states(**inputs).double()
        weight = tower.token_weights.values().double()[inputs["input_ids"]] * inputs["attention_mask"]
        expected = (states * weight[..., None]).sum(dim=1) / weight.sum(dim=1, keepdim=True)
        torch.testing.assert_close(tower(**inputs).double(), expected, rtol=1e-5, atol=1e-6)
        # encode computes without padding
        vectors = torch.nn.functional.normalize(encoder.embedder("text").head(expected.float()), dim=1)
    np.testing.assert_allclose(encoder.encode(TEXTS[:5]), vectors.numpy(), atol=1e-5)


def test_weights_learn(encoder):
    encoder.train()
    processor, tower = encoder.embedder("text").processor, encoder.embedder("text").tower
    inputs = processor.collate(processor.tokenize(TEXTS[:5])[0])
    tower(**inputs)[:, 0].sum().backward()
    gradient = tower.token_weights.log_weight.grad
    used = torch.zeros(len(gradient), dtype=torch.bool)
    used[inputs["input_ids"][inputs["attention_mask"] == 1]] = True
    assert (gradient[used] != 0).all()
    assert not gradient[~used].any()


def test_a_folder_with_token_weights_opens_here_and_in_sentence_transformers(encoder, tmp_path: Path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    with torch.no_grad():
        _log(encoder).add_(torch.randn(len(_log(encoder))).mul(0.3))
    expected = encoder.encode(TEXTS[:5])
    encoder.save(tmp_path / "model")
    np.testing.assert_allclose(mmcl.load(tmp_path / "model", dtype="float32").encode(TEXTS[:5]), expected, atol=1e-5)
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(theirs.encode(TEXTS[:5]), expected, atol=1e-5)
    theirs.save(str(tmp_path / "theirs"))
    np.testing.assert_allclose(mmcl.load(tmp_path / "theirs", dtype="float32").encode(TEXTS[:5]), expected, atol=1e-5)


def test_where_a_prompt_is_left_out_the_folder_is_ours_alone(encoder, tmp_path: Path):
    processor = encoder.embedder("text").processor
    encoder.save(tmp_path / "theirs")
    processor.set_prompts({"query": "the hill "}, "query")
    processor.include_prompt = False
    encoder.save(tmp_path / "ours")
    assert not (tmp_path / "ours" / "modules.json").exists()
    expected = encoder.encode(TEXTS[:5])
    np.testing.assert_allclose(mmcl.load(tmp_path / "ours", dtype="float32").encode(TEXTS[:5]), expected, atol=1e-5)
    (tmp_path / "theirs" / "mmcl.json").unlink()
    pooling = tmp_path / "theirs" / "2_Pooling" / "config.json"
    pooling.write_text(json.dumps({**json.loads(pooling.read_text()), "include_prompt": False}))
    with pytest.raises(mmcl.MmclError, match="word weights count prompts that it leaves out"):
        mmcl.load(tmp_path / "theirs")


@pytest.mark.parametrize("settings", [{"pooling": "cls"}, {"name": "sample:minilm"}])
def test_a_setting_that_would_do_nothing_is_refused(settings):
    with pytest.raises(ValueError, match="only a tower from scratch with pooling mean has them"):
        TextTowerConfig(token_weights=0.01, **settings)


def test_weights_of_another_vocabulary_are_refused(encoder, tokenizer):
    net, processor = encoder.embedder("text").tower.net, TextProcessor(tokenizer, max_tokens=9)
    with pytest.raises(mmcl.MmclError, match=r"the tokenizer has \d+ entries but 7 have weights"):
        TextTower(net, processor, pooling="mean", token_weights=TokenWeights(7))


def test_a_tokenizer_without_frequencies_is_refused():
    with pytest.raises(mmcl.MmclError, match="unigram tokenizer"):
        TokenWeights.smooth_inverse_frequency(object(), 0.01)


def _log(encoder: Encoder) -> torch.Tensor:
    return encoder.embedder("text").tower.token_weights.log_weight
