"""Static embeddings of a teacher."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mmcl
from mmcl.config.model import TextTowerConfig, TokenizerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.encoding.distill import distill_static
from mmcl.encoding.encoder import Encoder
from mmcl.formats.export import export
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.towers import Towers

TEXTS = ["a big red dog", "a small blue dog", "big dog", "", "red red red"]


@pytest.fixture
def teacher():
    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(vocab_size=30), 10**6)
    processor, tower = build_text_tower(TextTowerConfig(width=16, layers=2), tokenizer)
    towers = Towers({"text": TextEmbedder(processor, tower, Head.from_layers(16, []))}, 16, "teacher")
    encoder = Encoder(towers).eval()
    encoder.set_compute("float32")
    return encoder


def test_a_text_is_the_mean_of_its_tokens_by_the_formula(teacher):
    """With all dimensions the turn to principal axes keeps products, of which the formula in float64 has no turn."""
    smoothing = 0.1
    student = distill_static(teacher, dim=16, smoothing=smoothing)
    student.set_compute("float32")
    embedder = teacher.embedder("text")
    tokenizer, net = embedder.processor.tokenizer, embedder.tower.net.double()
    begin, *_, end = tokenizer("dog")["input_ids"]
    used = [number for number in range(len(tokenizer)) if number not in tokenizer.all_special_ids]
    framed = [[begin, number, end] for number in used]
    table = net(torch.tensor(framed)).last_hidden_state.mean(dim=1).detach().numpy()
    frequency = 1 / np.arange(2, len(table) + 2)
    weights = smoothing / (smoothing + frequency / frequency.sum())
    rows = dict(zip(used, (table - table.mean(axis=0)) * weights[:, None], strict=True))
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    expected = np.stack([np.mean([rows[number] for number in row] or [np.zeros(16)], axis=0) for row in ids])
    found = student.encode(TEXTS, normalize=False)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)


def test_it_is_a_folder_of_sentence_transformers_and_goes_to_model2vec(teacher, tmp_path, caplog):
    student = distill_static(teacher, dim=4)
    student.set_compute("float32")
    expected = student.encode(TEXTS)
    student.save(tmp_path / "student")
    export(student.towers, "model2vec", tmp_path / "exported")
    assert "unknown" not in caplog.text
    np.testing.assert_allclose(mmcl.load(tmp_path / "student", dtype="float32").encode(TEXTS), expected, atol=1e-5)
    sentence_transformers = pytest.importorskip("sentence_transformers")
    opened = sentence_transformers.SentenceTransformer(str(tmp_path / "student"), device="cpu", local_files_only=True)
    np.testing.assert_allclose(opened.encode(TEXTS), expected, atol=1e-5)
    model2vec = pytest.importorskip("model2vec")
    again = model2vec.StaticModel.from_pretrained(tmp_path / "exported")
    np.testing.assert_allclose(again.encode(TEXTS), expected, atol=1e-5)


def test_a_static_tower_trains_from_nothing_or_from_a_distilled_one(teacher, tmp_path):
    """As ``bag:mean``, or by the folder's name; what is learned moves the vectors."""
    student = distill_static(teacher, dim=8)
    student.save(tmp_path / "student")
    rows = "".join(f'{{"anchor": "{text} a", "positive": "{text} dog"}}\n' for text in TEXTS * 4)
    (tmp_path / "rows.jsonl").write_text(rows)
    data = {
        "train": {"source": str(tmp_path / "rows.jsonl")},
        "columns": {"anchor": "anchor", "positive": "positive"},
    }
    training = {"epochs": 2, "batch_size": 5, "lr": 1e-2, "precision": "float32", "device": "cpu"}
    text = {"name": "bag:mean", "width": 8, "tokenizer": {"vocab_size": 30}, "head": {"kind": "none"}}
    starts = {"distilled": {"name": str(tmp_path / "student")}, "new": {"dim": 8, "text": text}}
    for name, model in starts.items():
        config = {"method": {"name": "simcse"}, "data": data, "training": training, "model": model}
        mmcl.train(config, out=tmp_path / name)
        trained = mmcl.load(tmp_path / name)
        assert trained.encode(TEXTS).shape == (5, 8)
        assert not trained.encode("").any()
        assert (tmp_path / name / "model" / "modules.json").is_file()
    before, after = student.encode(TEXTS), mmcl.load(tmp_path / "distilled").encode(TEXTS)
    assert np.abs(after - before).max() > 1e-3
