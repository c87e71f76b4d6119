"""Model folders: what they keep beside the weights, and what older and broken ones give."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import mmcl
from mmcl.config.model import HeadConfig, TextTowerConfig, TokenizerConfig
from mmcl.models.embedder import Embedder
from mmcl.models.encoder import Encoder
from mmcl.models.heads import Dense, Head
from mmcl.models.text_tower import TextTower
from mmcl.models.tokenizer import train_tokenizer
from mmcl.runtime.errors import MmclError

TEXTS = ["a big red dog", "a small blue car"]


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    settings = TextTowerConfig(layers=1, width=16, heads=2, prompts={"query": "a | b: ", "document": ""})
    tower = TextTower.build(settings, train_tokenizer(TEXTS, TokenizerConfig(vocab_size=40), 20))
    tower.set_prompts(settings.prompts, "query")
    encoder = Encoder({"text": Embedder(tower, Head(HeadConfig(), 16, 8))}, 8, "tiny").eval()
    encoder.set_compute("float32")
    return encoder


@pytest.mark.parametrize("pooling", ["mean", "first_last"])  # a folder of sentence-transformers', and one of ours alone
def test_the_training_head_is_kept_beside_what_embeds(encoder, tmp_path, pooling):
    encoder.embedder("text").tower.set_pooling(pooling)
    expected = encoder.encode(TEXTS)
    encoder.training_head = Head(HeadConfig(kind="tanh"), 8, 8)
    loaded = mmcl.load(encoder.save(tmp_path / "model"), dtype="float32")
    features = torch.randn(3, 8)
    torch.testing.assert_close(loaded.training_head(features), encoder.training_head(features))
    np.testing.assert_array_equal(loaded.encode(TEXTS), expected)
    assert not any("training_head" in name for name in loaded.state_dict())
    (tmp_path / "model" / "training_head.safetensors").unlink()
    with pytest.raises(MmclError, match=r"training_head\.safetensors: the weights are missing"):
        mmcl.load(tmp_path / "model", dtype="float32")
    encoder.training_head = None
    encoder.save(tmp_path / "model")
    assert mmcl.load(tmp_path / "model", dtype="float32").training_head is None


@pytest.mark.parametrize("pooling", ["weighted_mean", "last_two"])
def test_heads_of_any_dense_layers_come_back(encoder, tmp_path, pooling):
    tower = encoder.embedder("text").tower
    tower.set_pooling(pooling)
    head = Head.from_layers(16, [Dense(12, activation="relu"), Dense(6, bias=False)], dropout=0.25)
    ours = Encoder({"text": Embedder(tower, head)}, 6, "tiny").eval()
    ours.set_compute("float32")
    loaded = mmcl.load(ours.save(tmp_path / "model"), dtype="float32")
    np.testing.assert_array_equal(loaded.encode(TEXTS), ours.encode(TEXTS))
    assert loaded.embedder("text").head.spec() == head.spec()


def test_folders_of_format_2_still_open(encoder, tmp_path):
    """Whose descriptions name no default prompt, no case and no training head."""
    encoder.embedder("text").tower.set_prompts({})
    encoder.save(tmp_path / "model")
    path = tmp_path / "model" / "mmcl.json"
    description = json.loads(path.read_text())
    for key in ("default_prompt", "include_prompt", "lowercase"):
        del description["towers"]["text"]["tower"][key]
    path.write_text(json.dumps(description | {"format_version": 2}))
    np.testing.assert_array_equal(mmcl.load(tmp_path / "model", dtype="float32").encode(TEXTS), encoder.encode(TEXTS))


def test_the_card_tells_how_to_use_the_model(encoder, tmp_path):
    encoder.training_head = Head(HeadConfig(kind="tanh"), 8, 8)
    encoder.card = {"training": {"matryoshka": [8, 4]}}
    card = (encoder.save(tmp_path / "model") / "README.md").read_text()
    for line in (
        '| prompt `query`, the default | `"a \\\\| b: "` |'.replace("\\\\", "\\"),
        "| prompt `document` | none |",
        "| pooling | mean |",
        "| tokens | longer texts are cut after 64 |",
        "`encode(truncate_dim=…)` keeps the first, as it was trained to: 8, 4",
        "`training_head.safetensors` stood before the loss",
    ):
        assert line in card


def test_precision_and_backend_are_passed_on(encoder, tmp_path):
    encoder.save(tmp_path / "model")
    exact = mmcl.load(tmp_path / "model", dtype="float32").encode(TEXTS)
    rounded = mmcl.load(tmp_path / "model", dtype="bfloat16").encode(TEXTS)
    assert not np.array_equal(exact, rounded)
    assert (exact * rounded).sum(axis=1).min() > 0.99
    with pytest.raises(MmclError, match="float8"):
        mmcl.load(tmp_path / "model", dtype="float8")
    with pytest.raises(MmclError, match="did you mean 'openvino'"):
        mmcl.load(tmp_path / "model", backend="openvimo")
    with pytest.raises(MmclError, match="'onnx' computes in a precision of its own"):
        mmcl.load(tmp_path / "model", dtype="bfloat16", backend="onnx")
