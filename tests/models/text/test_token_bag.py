"""The bag of tokens: where its vectors start, what it learns, and that it is read as it was written."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.feature_extraction.text import TfidfVectorizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

import mmcl
from mmcl.config import load_config
from mmcl.config.model import TextTowerConfig, TokenizerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.formats.export import cannot_export
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.text.token_bag import TokenBag
from mmcl.models.text.token_weights import token_frequencies
from mmcl.runtime.errors import MmclError
from mmcl.training import train
from mmcl.training.build import build_method

ROWS = [
    f"the {colour} {thing} sat on a {place}"
    for colour in ("red", "blue", "yellow")
    for thing in ("dog", "doghouse", "cat", "hat")
    for place in ("mat", "mountain", "hill")
]


@pytest.fixture(scope="module", params=[None, 10])
def tokenizer(request):
    return train_tokenizer(ROWS, TokenizerConfig(words=request.param, vocab_size=70), 32)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ROWS))
    text = {"name": "bag:ngrams", "width": 64, "args": {"learned": 8}, "head": {"kind": "none"}}
    return {
        "method": {"name": "simcse", "positives": "halves"},
        "data": {"train": {"source": str(tmp_path / "rows.jsonl")}},
        "model": {"dim": 64, "text": text | {"tokenizer": {"vocab_size": 70}}},
        "training": {"epochs": 4, "batch_size": 12, "lr": 1e-2, "precision": "float32", "device": "cpu"},
    }


def test_spelling_starts_with_the_cosines_of_tf_idf_over_character_ngrams(tokenizer):
    torch.manual_seed(0)
    bag = TokenBag(len(tokenizer), 8192, learned=1)
    bag.start(tokenizer)
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    long = [number for number, piece in enumerate(pieces) if len(piece) >= 3]
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(3, 4), lowercase=False, norm=None, use_idf=False)
    counts = vectorizer.fit_transform([f"{piece}▁" for piece in pieces]).toarray()
    rarity = np.log(0.05 / (token_frequencies(tokenizer, "here").double().numpy() @ counts).clip(1e-7)).clip(0.1)
    expected = counts[long] * rarity
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    vectors = bag.spelling.weight[long].double().numpy()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=0.06)  # 5 of 1 / sqrt(8191)


def test_features_are_the_weighted_sums_of_both_tables(tokenizer):
    torch.manual_seed(0)
    bag = TokenBag(len(tokenizer), 24, learned=8, share=0.3, smoothing=(0.01, 0.1))
    bag.eval().start(tokenizer)
    ids, mask = torch.tensor([[5, 9, 5], [7, 7, 0]]), torch.tensor([[1, 1, 1], [0, 1, 0]])
    frequency = token_frequencies(tokenizer, "here").double()
    inside = [not piece.startswith("▁") for piece in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]
    sums = []
    for table, smoothing in ((bag.spelling, 0.01), (bag.meaning, 0.1)):
        weighted = table.weight.double() * (smoothing / (smoothing + frequency))[:, None]
        if table is bag.spelling:
            weighted[inside] *= 0.5
        sums.append(torch.stack([weighted[5] + weighted[9], weighted[7]]))  # a token twice is one
    expected = torch.cat([share**0.5 * F.normalize(part) for share, part in zip((0.7, 0.3), sums, strict=True)], dim=1)
    torch.testing.assert_close(bag(ids, mask).double(), expected, rtol=1e-5, atol=1e-6)
    alone = F.pad(F.normalize(sums[1], dim=1), (16, 0))
    torch.testing.assert_close(bag.train()(ids, mask).double(), alone, rtol=1e-5, atol=1e-6)


def test_numbers_count_as_often_as_asked_for():
    tokenizer = train_tokenizer(
        [f"{text} of {year}" for text in ROWS for year in (7, 77)], TokenizerConfig(vocab_size=80), 32
    )
    plain, weighted = TokenBag(len(tokenizer), 8, learned=4), TokenBag(len(tokenizer), 8, learned=4, numbers=3.0)
    for bag in (plain, weighted):
        bag.start(tokenizer)
    (number,), (word,) = (tokenizer.convert_tokens_to_ids([piece]) for piece in ("▁7", "▁of"))
    assert number != word
    torch.testing.assert_close(weighted.weights[0, number], 3 * plain.weights[0, number])
    torch.testing.assert_close(weighted.weights[:, word], plain.weights[:, word])


def test_a_bag_trains_is_saved_and_is_loaded(config, tmp_path):
    start = build_method(load_config(config), tmp_path / "start").encoder.text().tower.net
    run = train(config, out=tmp_path / "run", show_progress=False)
    learned = run.model.embedder("text").tower.net
    torch.testing.assert_close(learned.spelling.weight, start.spelling.weight, rtol=0, atol=0)
    assert not torch.allclose(learned.meaning.weight, start.meaning.weight, atol=1e-2)
    encoder = mmcl.load(tmp_path / "run", dtype="float32")
    vectors = encoder.encode(["red dog", "doghouse", "", "a hill"])
    assert vectors.shape == (4, 64)
    assert np.isfinite(vectors).all()
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[3]
    encoder.save(tmp_path / "again")
    np.testing.assert_array_equal(mmcl.load(tmp_path / "again", dtype="float32").encode(["red dog"])[0], vectors[0])
    assert all(cannot_export(encoder.towers, to) for to in ("sentence-transformers", "transformers", "onnx"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.text.name=bag:words"], r"'bag:words': there is no such bag; use bag:ngrams"),
        (
            ["model.text.args.learned=64"],
            r"'bag:ngrams': mmcl cannot make it \(ValueError: learned is 64, and not from 1",
        ),
        (["model.text.args.share=1"], r"'bag:ngrams': mmcl cannot make it \(ValueError: share is 1, of 1"),
        (["model.text.args.ngrams=[4,3]"], r"'bag:ngrams': mmcl cannot make it \(ValueError: ngrams are \[4, 3\]"),
        (["model.text.args.hashed=true"], r"'bag:ngrams': mmcl cannot make it \(TypeError: .*'hashed'"),
    ],
)
def test_mistakes_are_named(config, tmp_path, changes, message):
    with pytest.raises(MmclError, match=message):
        build_method(load_config(config, changes), tmp_path / "run")


def test_a_tokenizer_without_frequencies_is_refused():
    words = {f"w{number}": number for number in range(20)} | {"[UNK]": 20}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, "[UNK]")), unk_token="[UNK]")
    with pytest.raises(MmclError, match=r"bag:ngrams: needs a unigram tokenizer .* this one is a WordLevel"):
        build_text_tower(TextTowerConfig(name="bag:ngrams"), tokenizer)
