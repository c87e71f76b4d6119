"""Folders of model2vec, both ways, against that library itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import mmcl
from mmcl.formats.export import export
from mmcl.runtime.errors import MmclError

from .made import made_here, theirs

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "a", "big", "red", "dog", "##s", "small", "!"]
TEXTS = ["a big red dog", "small dogs!", "a blue dog", "", "nothing", "a dog " * 400]


@pytest.fixture(scope="module")
def model2vec():
    return pytest.importorskip("model2vec")


def tokenizer():
    made = Tokenizer(models.WordPiece({token: number for number, token in enumerate(TOKENS)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    return made


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


PARTS = {
    "plain": lambda: {"vectors": random(len(TOKENS), 6)},
    "weights": lambda: {"vectors": random(len(TOKENS), 6), "weights": random(len(TOKENS)) ** 2},
    "fewer vectors than tokens": lambda: {
        "vectors": random(4, 6),
        "weights": random(len(TOKENS)) ** 2,
        "token_mapping": np.arange(len(TOKENS)) % 4,
    },
}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("parts", PARTS)
def test_their_folders_open_and_go_back(model2vec, tmp_path, parts, normalize):
    settings = {"normalize": normalize, "max_length": 300, "config": {"model_type": "model2vec"}}
    model = model2vec.StaticModel(**PARTS[parts](), tokenizer=tokenizer(), **settings)
    model.save_pretrained(tmp_path / "theirs")
    expected = model.encode(TEXTS)
    assert np.abs(expected[[0, 1, 2, 5]]).max(axis=1).min() > 0.05
    assert not expected[3:5].any()
    encoder = mmcl.load(tmp_path / "theirs", dtype="float32")
    encoder.save(tmp_path / "ours")
    export(encoder.towers, "model2vec", tmp_path / "exported")
    for opened in (encoder, *(mmcl.load(tmp_path / name, dtype="float32") for name in ("ours", "exported"))):
        assert opened.conventions.normalize == normalize
        np.testing.assert_allclose(opened.encode(TEXTS, normalize=normalize), expected, atol=1e-5)
    again = model2vec.StaticModel.from_pretrained(tmp_path / "exported")
    np.testing.assert_allclose(again.encode(TEXTS), expected, atol=1e-5)
    library = pytest.importorskip("sentence_transformers")  # which counts unknown words
    np.testing.assert_allclose(theirs(library, tmp_path / "exported").encode(TEXTS[:2]), expected[:2], atol=1e-5)


def test_what_leaves_unknown_words_out_is_no_folder_of_sentence_transformers(model2vec, tmp_path):
    config = {"model_type": "model2vec"}
    model2vec.StaticModel(random(len(TOKENS), 6), tokenizer(), config=config).save_pretrained(tmp_path / "theirs")
    encoder = mmcl.load(tmp_path / "theirs")
    with pytest.raises(MmclError, match="it counts unknown words"):
        export(encoder.towers, "sentence-transformers", tmp_path / "out")
    assert encoder.embedder("text").processor.max_tokens == 512


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mapping": np.full(len(TOKENS), 9)}, "mapping names vectors"),
        ({"weights": random(3)}, "10 tokens but 3 weights"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(model2vec, tmp_path, changes, message):
    from safetensors.numpy import save_file

    config = {"model_type": "model2vec"}
    model2vec.StaticModel(random(len(TOKENS), 6), tokenizer(), config=config).save_pretrained(tmp_path)
    vectors = random(len(TOKENS) if "weights" in changes else 4, 6)
    save_file({"embeddings": vectors, **changes}, tmp_path / "model.safetensors")
    with pytest.raises(MmclError, match=message):
        mmcl.load(tmp_path)


def test_what_has_context_cannot_be_exported_there(plain, tmp_path):
    with pytest.raises(MmclError, match=r"mean of static token vectors only; see mmcl\.distill_static"):
        export(made_here(plain["bert"], "mean").towers, "model2vec", tmp_path / "out")
    assert json.loads((plain["bert"] / "config.json").read_text())["model_type"] == "bert"
