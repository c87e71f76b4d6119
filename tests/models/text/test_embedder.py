"""An embedder of texts: they pass through the tower end to end, or in groups of similar length."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmcl.config.model import HeadConfig, TextTowerConfig, TokenizerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head
from mmcl.models.text.embedder import TextEmbedder


@pytest.fixture(params=["end to end", "in groups"], autouse=True)
def how(request, monkeypatch):
    if request.param == "in groups":
        monkeypatch.setattr("mmcl.models.text.embedder.trains_packed", lambda tower: False)


def make_embedder() -> TextEmbedder:
    torch.manual_seed(0)
    words = [f"{a} {b}" for a in ("red", "green", "blue", "small") for b in ("shoe", "shirt", "watch", "bag")]
    tokenizer = train_tokenizer(words * 5, TokenizerConfig(vocab_size=60), 32)
    section = TextTowerConfig(layers=2, width=32, heads=2, max_tokens=32)
    processor, tower = build_text_tower(section, tokenizer=tokenizer)
    return TextEmbedder(processor, tower, Head(HeadConfig(), tower.width, 16))


def test_grouping_by_length_changes_no_result():
    embedder = make_embedder().eval()
    rng = np.random.default_rng(0)
    tokens = [rng.integers(4, 20, size=n).astype(np.int32) for n in rng.integers(1, 30, size=391)]
    inputs = embedder.processor.collate(tokens)
    with torch.no_grad():
        alone = torch.cat([embedder.head(embedder.tower(**embedder.processor.collate([text]))) for text in tokens])
        torch.testing.assert_close(embedder(**inputs), alone, rtol=1e-4, atol=1e-5)


def test_grouping_leaves_each_text_its_own_number_of_skipped_tokens():
    embedder = make_embedder().eval()
    rng = np.random.default_rng(1)
    tokens = [rng.integers(4, 20, size=n).astype(np.int32) for n in rng.integers(8, 30, size=150)]
    skipped = torch.from_numpy(rng.integers(0, 7, size=150))
    collate = embedder.processor.collate
    with torch.no_grad():
        alone = [
            embedder.tower(**collate([text]), skipped=few[None]) for text, few in zip(tokens, skipped, strict=True)
        ]
        got = embedder(**collate(tokens), skipped=skipped)
        torch.testing.assert_close(got, embedder.head(torch.cat(alone)), rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_text():
    embedder = make_embedder().eval()
    tokens = [np.full(1 + i % 9, 5, dtype=np.int32) for i in range(256)]
    weights = torch.randn(len(tokens), 16)
    (embedder(**embedder.processor.collate(tokens)) * weights).sum().backward()
    grouped = {name: p.grad.clone() for name, p in embedder.named_parameters() if p.grad is not None}
    embedder.zero_grad()
    together = embedder.head(embedder.tower(**embedder.processor.collate(tokens)))
    (together * weights).sum().backward()
    for name, parameter in embedder.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(grouped[name], parameter.grad, rtol=1e-3, atol=1e-5)
