"""Folders of sentence-transformers, both ways, against that library itself."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers

import mmcl
from mmcl.config.model import HeadConfig, TokenizerConfig
from mmcl.models.embedder import Embedder
from mmcl.models.encoder import Encoder
from mmcl.models.heads import Dense, Head
from mmcl.models.sentence_transformers import read_settings
from mmcl.models.text_tower import TextTower
from mmcl.models.tokenizer import train_tokenizer
from mmcl.runtime.errors import MmclError

CORPUS = [f"a {size} {colour} {thing}" for size in ("Big", "small") for colour in ("red", "blue") for thing in ("dog",)]
TEXTS = ["a big red dog", "small", "A BLUE dog and a red one", "", "dog " * 60, "a  small   blue\ndog"]
POOLINGS = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len": "mean_sqrt_len_tokens",
    "weighted_mean": "weightedmean",
    "last": "lasttoken",
    "mean+max": ("mean", "max"),
    "cls+mean+last": ("cls", "mean", "lasttoken"),
}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
KINDS = {
    "bert": ("Bert", {"max_position_embeddings": 40}),
    "roberta": ("Roberta", {"max_position_embeddings": 41, "type_vocab_size": 1}),
    "mpnet": ("MPNet", {"max_position_embeddings": 41}),
    "qwen2": ("Qwen2", {"max_position_embeddings": 40, "num_key_value_heads": 1}),
}
DENSE = [Dense(12, activation="tanh"), Dense(10, bias=False), Dense(8, activation="gelu")]


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Folders of transformers with tiny models of several kinds, and one whose tokenizer pads on the left."""
    folders = {}
    tokenizer = train_tokenizer(CORPUS, TokenizerConfig(vocab_size=40, lowercase=False), 10**6)
    for kind, (name, settings) in KINDS.items():
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(
            **SMALL, **settings, vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=2, eos_token_id=3
        )
        net = getattr(transformers, f"{name}Model")(config)
        with torch.no_grad():
            for parameter in net.parameters():  # biases and gains start at 0 and 1, which would hide their loss
                parameter.add_(0.1 * torch.randn_like(parameter))
        tokenizer.padding_side = "left" if kind == "qwen2" else "right"
        folders[kind] = tmp_path_factory.mktemp(kind)
        net.save_pretrained(folders[kind])
        tokenizer.save_pretrained(folders[kind])
    return folders


def theirs(library, folder, **options):
    return library.SentenceTransformer(str(folder), device="cpu", local_files_only=True, **options)


def made_by_them(library, source, modes, *, limit=20, dense=(), normalize=True, lowercase=False, **options):
    """A model as that library's users build it."""
    from sentence_transformers.base.modules import Dense as TheirDense
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    include = options.pop("include_prompt", True)
    torch.manual_seed(1)
    modules = [Transformer(str(source), max_seq_length=limit, do_lower_case=lowercase)]
    modules.append(Pooling(16, modes, include_prompt=include))
    width = 16 * (1 if isinstance(modes, str) else len(modes))
    for layer in dense:
        activation = {"tanh": torch.nn.Tanh, "gelu": torch.nn.GELU, "identity": torch.nn.Identity}[layer.activation]
        modules.append(TheirDense(width, layer.width, layer.bias, activation()))
        width = layer.width
    modules += [Normalize()] if normalize else []
    return library.SentenceTransformer(modules=modules, device="cpu", **options)


def made_here(source, pooling, head=None, **options):
    tower = TextTower.open(str(source))
    options = {"max_tokens": 20, **options}
    tower = TextTower(tower.net, tower.tokenizer, pooling=pooling, **options)
    torch.manual_seed(1)
    head = Head.from_layers(tower.width, head or [])
    return Encoder({"text": Embedder(tower, head)}, head.layers[-1].width if head.layers else tower.width, "m").eval()


def same(ours, others):
    """Unit vectors that agree to the digits that the project promises."""
    np.testing.assert_allclose(ours, others, atol=1e-5)
    np.testing.assert_array_less(1 - 1e-6, (ours * others).sum(axis=1))


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_they_save_opens_here_and_goes_back(library, plain, tmp_path, kind, pooling):
    model = made_by_them(library, plain[kind], POOLINGS[pooling], normalize=kind != "mpnet")
    expected = unit(model.encode(TEXTS))
    model.save(str(tmp_path / "theirs"))
    encoder = mmcl.load(tmp_path / "theirs")
    assert encoder.embedder("text").tower.pooling == pooling
    same(encoder.encode(TEXTS), expected)
    encoder.save(tmp_path / "ours")
    same(theirs(library, tmp_path / "ours").encode(TEXTS), expected)
    same(mmcl.load(tmp_path / "ours").encode(TEXTS), expected)


@pytest.mark.parametrize(("kind", "include"), [("bert", False), ("mpnet", True), ("qwen2", False), ("roberta", True)])
def test_every_setting_survives_both_ways(library, plain, tmp_path, kind, include):
    prompts = {"query": "red dog ", "document": ""}
    model = made_by_them(
        library,
        plain[kind],
        ("mean", "weightedmean"),
        limit=9,
        dense=DENSE,
        lowercase=True,
        include_prompt=include,
        prompts=prompts,
        default_prompt_name="query",
    )
    model.save(str(tmp_path / "theirs"))
    encoder = mmcl.load(tmp_path / "theirs")
    encoder.save(tmp_path / "ours")
    for opened in (encoder, mmcl.load(tmp_path / "ours")):
        same(opened.encode(TEXTS), model.encode(TEXTS))
        same(opened.encode(TEXTS, prompt="document"), model.encode(TEXTS, prompt_name="document"))
    again = theirs(library, tmp_path / "ours")
    same(again.encode(TEXTS), model.encode(TEXTS))
    same(again.encode(TEXTS, prompt_name="document"), model.encode(TEXTS, prompt_name="document"))
    assert not np.allclose(model.encode(TEXTS), model.encode(TEXTS, prompt_name="document"), atol=1e-3)
    assert (again.prompts, again.default_prompt_name, again.max_seq_length) == (prompts, "query", 9)


@pytest.mark.parametrize("pooling", ["max+mean", "last+cls", "weighted_mean"])
def test_what_is_made_here_opens_there(library, plain, tmp_path, pooling):
    """An order of poolings too that the flags of that library's older folders cannot tell."""
    prompts = {"query": "dog "}
    encoder = made_here(plain["bert"], pooling, DENSE, prompts=prompts, lowercase=True, include_prompt=False)
    encoder.save(tmp_path / "ours")
    model = theirs(library, tmp_path / "ours")
    same(encoder.encode(TEXTS), model.encode(TEXTS))
    same(encoder.encode(TEXTS, prompt="query"), model.encode(TEXTS, prompt_name="query"))
    (tmp_path / "ours" / "mmcl.json").unlink()  # now it is theirs alone
    same(mmcl.load(tmp_path / "ours").encode(TEXTS, prompt="query"), model.encode(TEXTS, prompt_name="query"))


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet"])
def test_a_models_own_pooler_becomes_a_dense_layer_there(library, plain, tmp_path, kind):
    encoder = made_here(plain[kind], "pooler", [Dense(6)])
    encoder.save(tmp_path / "ours")
    same(theirs(library, tmp_path / "ours").encode(TEXTS), encoder.encode(TEXTS))
    same(mmcl.load(tmp_path / "ours").encode(TEXTS), encoder.encode(TEXTS))


def test_what_they_cannot_pool_is_a_folder_of_ours_alone(plain, tmp_path):
    encoder = made_here(plain["bert"], "first_last")
    encoder.save(tmp_path / "ours")
    assert not (tmp_path / "ours" / "modules.json").exists()
    same(mmcl.load(tmp_path / "ours").encode(TEXTS), encoder.encode(TEXTS))


def test_real_weights_both_ways(library, tmp_path):
    if not any((mmcl.runtime.files.cache_dir("samples", "minilm")).iterdir()):
        pytest.skip("the sample 'minilm' is not in the cache")
    encoder = mmcl.load("sample:minilm")
    texts = ["Two dogs run on a beach.", "", "Naïve Bayes — or not?", "the stock market fell " * 100]
    expected = theirs(library, encoder.path).encode(texts)
    same(encoder.encode(texts), expected)
    encoder.save(tmp_path / "ours")
    same(theirs(library, tmp_path / "ours").encode(texts), expected)
