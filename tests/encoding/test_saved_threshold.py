"""A measured threshold goes with the model that it was measured of, wherever that is saved to."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

import mmcl
from mmcl.config.model import HeadConfig, TextTowerConfig, TokenizerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.encoding.encoder import Encoder
from mmcl.evaluation import threshold
from mmcl.formats.threshold import FILE, keep_threshold, read_threshold
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.towers import Towers

TEXTS = ["a red dog", "a blue car", "a green tree", "two dogs and a tree"]


@pytest.fixture(scope="module")
def measured():
    rng = np.random.default_rng(0)
    same = rng.random(2000) < 0.4
    return threshold(rng.normal(2.0 * same), same, (0.9,)).to_dict()


@pytest.fixture
def folder(tmp_path):
    """Of a model with two towers of texts."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(vocab_size=40), 20)
    embedders = {}
    for name in ("question", "answer"):
        texts, text = build_text_tower(TextTowerConfig(layers=1, width=16, heads=2), tokenizer)
        embedders[name] = TextEmbedder(texts, text, Head(HeadConfig(), 16, 8))
    return Encoder(Towers(embedders, 8, "tiny")).eval().save(tmp_path / "model")


def keep(encoder, between, measured):
    return keep_threshold(encoder.path, between, {"encoder": encoder.fingerprint(), **measured})


def test_it_goes_with_a_model_that_is_saved_elsewhere_or_again(folder, tmp_path, measured) -> None:
    encoder = mmcl.load(folder)
    keep(encoder, "answer-question", measured)
    keep(encoder.select("answer"), "answer-answer", measured)
    kept = read_threshold(folder, "answer-question")
    card = (folder / "README.md").read_text()
    for place in (tmp_path / "elsewhere", tmp_path / "elsewhere", folder):
        saved = mmcl.load(encoder.save(place))
        for between, of in (("answer-question", saved), ("answer-answer", saved.select("answer"))):
            again = read_threshold(place, between)
            assert (again.cuts, again.calibration) == (kept.cuts, kept.calibration)
            assert again.encoder == of.fingerprint()
        assert (place / "README.md").read_text() == card


def test_it_is_left_behind_where_the_weights_changed(folder, tmp_path, measured, caplog) -> None:
    encoder = mmcl.load(folder)
    keep(encoder, "answer-question", measured)
    keep(encoder.select("answer"), "answer-answer", measured)
    with torch.no_grad():
        next(encoder.embedder("question").parameters()).add_(1)
    with caplog.at_level(logging.INFO, logger="mmcl"):
        encoder.save(tmp_path / "changed")
    (line,) = caplog.messages
    assert line.startswith(f"the threshold of answer-question in {folder / FILE} is of other weights")
    assert read_threshold(tmp_path / "changed", "answer-answer").encoder == encoder.select("answer").fingerprint()
    with torch.no_grad():
        next(encoder.embedder("answer").parameters()).add_(1)
    encoder.save(tmp_path / "changed")
    assert not (tmp_path / "changed" / FILE).exists()
    assert "Match threshold" not in (tmp_path / "changed" / "README.md").read_text()


def test_one_that_is_damaged_does_not_keep_a_model_from_being_saved(folder, tmp_path, measured, caplog) -> None:
    encoder = mmcl.load(folder)
    path = keep(encoder, "answer-question", measured)
    for content in ("{", '{"format_version": 1, "thresholds": {"answer-question": 3}}'):
        path.write_text(content)
        caplog.clear()
        encoder.path = folder
        encoder.save(tmp_path / "again")
        assert len(caplog.messages) == 1
        assert not (tmp_path / "again" / FILE).exists()
