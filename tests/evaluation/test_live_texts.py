"""Judging during training: what is judged is what is searched with later."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmcl.config.model import HeadConfig, TextTowerConfig, TokenizerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.encoding import Encoder
from mmcl.evaluation.live_texts import LiveTexts
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.towers import Towers

TEXTS = ["a red dog", "a small blue car under the big dog", "cars", "the dog sits"]


@pytest.mark.parametrize("native", [True, False])
def test_texts_are_judged_in_the_precision_of_a_loaded_model(monkeypatch, native):
    monkeypatch.setattr("mmcl.runtime.device.multiplies_bfloat16", lambda device: native)
    torch.manual_seed(0)
    processor, tower = build_text_tower(
        TextTowerConfig(layers=2, width=32, heads=2), train_tokenizer(TEXTS, TokenizerConfig(vocab_size=50), 20)
    )
    towers = Towers({"text": TextEmbedder(processor, tower, Head(HeadConfig(), 32, 16))}, 16).eval()
    encoder = Encoder(towers)
    served, judged = encoder.encode(TEXTS), LiveTexts(towers).encode(TEXTS)
    encoder.set_compute("float32")
    exact = encoder.encode(TEXTS)
    assert np.allclose(judged, exact, atol=1e-5) != native
    np.testing.assert_allclose(judged, served, atol=2e-2 if native else 1e-5)
    assert not np.array_equal(served, exact) or not native
