"""Folders of sentence-transformers, both ways, against that library itself."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers

import mmcl
from mmcl.models.layers import Dense
from mmcl.runtime.errors import MmclError

from .made import DENSE, KINDS, POOLINGS, TEXTS, assert_same, made_by_them, made_here, theirs, unit, write


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_they_save_opens_here_and_goes_back(library, plain, tmp_path, kind, pooling):
    model = made_by_them(library, plain[kind], POOLINGS[pooling], normalize=kind != "mpnet")
    expected = unit(model.encode(TEXTS))
    model.save(str(tmp_path / "theirs"))
    encoder = mmcl.load(tmp_path / "theirs", dtype="float32")
    assert encoder.embedder("text").tower.pooling == pooling
    assert model.tokenizer.padding_side == ("left" if kind == "qwen2" else "right")
    assert_same(encoder.encode(TEXTS), expected)
    encoder.save(tmp_path / "ours")
    np.testing.assert_allclose(theirs(library, tmp_path / "ours").encode(TEXTS), model.encode(TEXTS), atol=1e-5)
    assert_same(mmcl.load(tmp_path / "ours", dtype="float32").encode(TEXTS), expected)


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
    model = theirs(library, tmp_path / "theirs")  # which forgets to fold case for some tokenizers
    encoder = mmcl.load(tmp_path / "theirs", dtype="float32")
    encoder.save(tmp_path / "ours")
    for opened in (encoder, mmcl.load(tmp_path / "ours", dtype="float32")):
        assert_same(opened.encode(TEXTS), model.encode(TEXTS))
        assert_same(opened.encode(TEXTS, prompt="document"), model.encode(TEXTS, prompt_name="document"))
    again = theirs(library, tmp_path / "ours")
    assert_same(again.encode(TEXTS), model.encode(TEXTS))
    assert_same(again.encode(TEXTS, prompt_name="document"), model.encode(TEXTS, prompt_name="document"))
    assert not np.allclose(model.encode(TEXTS), model.encode(TEXTS, prompt_name="document"), atol=1e-3)
    assert (again.prompts, again.default_prompt_name, again.max_seq_length) == (prompts, "query", 9)


@pytest.mark.parametrize("pooling", ["max+mean", "last+cls", "weighted_mean"])
def test_what_is_made_here_opens_there(library, plain, tmp_path, pooling):
    """An order of poolings too that the flags of that library's older folders cannot tell."""
    prompts = {"query": "dog "}
    encoder = made_here(plain["bert"], pooling, DENSE, prompts=prompts, lowercase=True, include_prompt=False)
    encoder.save(tmp_path / "ours")
    model = theirs(library, tmp_path / "ours")
    assert_same(encoder.encode(TEXTS), model.encode(TEXTS))
    assert_same(encoder.encode(TEXTS, prompt="query"), model.encode(TEXTS, prompt_name="query"))
    (tmp_path / "ours" / "mmcl.json").unlink()  # now it is theirs alone
    assert_same(
        mmcl.load(tmp_path / "ours", dtype="float32").encode(TEXTS, prompt="query"),
        model.encode(TEXTS, prompt_name="query"),
    )


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet"])
def test_a_models_own_pooler_becomes_a_dense_layer_there(library, plain, tmp_path, kind):
    encoder = made_here(plain[kind], "pooler", [Dense(6)])
    encoder.save(tmp_path / "ours")
    assert_same(theirs(library, tmp_path / "ours").encode(TEXTS), encoder.encode(TEXTS))
    assert_same(mmcl.load(tmp_path / "ours", dtype="float32").encode(TEXTS), encoder.encode(TEXTS))


@pytest.mark.parametrize(("pooling", "include"), [("first_last", True), ("pooler", False)])
def test_what_they_cannot_pool_is_a_folder_of_ours_alone(plain, tmp_path, pooling, include):
    """The pooler reads the first token of all, and there it would read the first one behind a prompt left out."""
    encoder = made_here(plain["bert"], pooling, prompts={"query": "dog "}, include_prompt=include)
    encoder.save(tmp_path / "ours")
    assert not (tmp_path / "ours" / "modules.json").exists()
    opened = mmcl.load(tmp_path / "ours", dtype="float32")
    assert_same(opened.encode(TEXTS, prompt="query"), encoder.encode(TEXTS, prompt="query"))


def test_real_weights_both_ways(library, tmp_path):
    try:
        encoder = mmcl.load("sample:minilm", dtype="float32")
    except MmclError as error:
        pytest.skip(f"MiniLM is not to be had: {error}")
    texts = ["Two dogs run on a beach.", "", "Naïve Bayes — or not?", "the stock market fell " * 100]
    expected = theirs(library, encoder.path).encode(texts)
    assert_same(encoder.encode(texts), expected)
    encoder.save(tmp_path / "ours")
    assert_same(theirs(library, tmp_path / "ours").encode(texts), expected)


def module(kind, path, package="sentence_transformers.models"):
    return {"idx": 0, "name": kind, "path": path, "type": f"{package}.{kind}"}


def first_generation(source, folder):
    """A module for the architecture in a folder of its own, flags, and a version alone for the whole."""
    write(folder / "modules.json", [module("RoBERTa", "0_RoBERTa"), module("Pooling", "1_Pooling")])
    write(folder / "config.json", {"__version__": "0.2.5"})
    shutil.copytree(source, folder / "0_RoBERTa")
    write(folder / "0_RoBERTa" / "sentence_roberta_config.json", {"max_seq_length": 9, "do_lower_case": True})
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 16, "pooling_mode_max_tokens": True})


def second_generation(source, folder):
    """A transformer in ``0_Transformer/``, several flags, dense weights in a pickle of tensors, a dropout."""
    parts = [("Transformer", "0_Transformer"), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Dropout", "3_Dropout")]
    write(folder / "modules.json", [module(*part) for part in parts])
    write(folder / "config_sentence_transformers.json", {"__version__": {"sentence_transformers": "2.0.0"}})
    shutil.copytree(source, folder / "0_Transformer")
    write(folder / "0_Transformer" / "sentence_bert_config.json", {"max_seq_length": 9, "do_lower_case": True})
    flags = {"pooling_mode_cls_token": False, "pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 16, **flags})
    tanh = "torch.nn.modules.activation.Tanh"
    dense = {"in_features": 32, "out_features": 8, "bias": True, "activation_function": tanh}
    write(folder / "2_Dense" / "config.json", dense)
    torch.manual_seed(2)
    state = {"linear.weight": torch.randn(8, 32), "linear.bias": torch.randn(8)}
    torch.save(state, folder / "2_Dense" / "pytorch_model.bin")
    write(folder / "3_Dropout" / "config.json", {"dropout": 0.5})


def newest_generation(source, folder):
    """Packages with other names, one name of the pooling, the limit where the tokenizer is."""
    shutil.copytree(source, folder)
    base, own = "sentence_transformers.base.modules", "sentence_transformers.sentence_transformer.modules"
    kinds = [
        module("Transformer", "", f"{base}.transformer"),
        module("Pooling", "1_Pooling", f"{own}.pooling"),
        module("Normalize", "2_Normalize", f"{base}.normalize"),
    ]
    write(folder / "modules.json", kinds)
    write(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
        },
    )
    write(folder / "1_Pooling" / "config.json", {"embedding_dimension": 16, "pooling_mode": "lasttoken"})
    write(folder / "2_Normalize" / "config.json", {"module_input_name": "sentence_embedding"})
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    write(folder / "tokenizer_config.json", tokenizer | {"model_max_length": 9})


@pytest.mark.parametrize("generation", [first_generation, second_generation, newest_generation])
def test_every_generation_opens(library, plain, tmp_path, generation):
    generation(plain["roberta"], tmp_path / "old")
    if generation is first_generation:  # whose names the library itself has forgotten
        shutil.copytree(tmp_path / "old", tmp_path / "today")
        modules = [module("Transformer", "0_RoBERTa"), module("Pooling", "1_Pooling")]
        write(tmp_path / "today" / "modules.json", modules)
    model = theirs(library, tmp_path / ("today" if generation is first_generation else "old"))
    encoder = mmcl.load(tmp_path / "old", dtype="float32")
    assert encoder.embedder("text").processor.max_tokens == model.max_seq_length == 9
    assert_same(encoder.encode(TEXTS), unit(model.encode(TEXTS)))


def test_a_plain_language_model_tells_of_a_text_in_its_last_state(library, plain, tmp_path):
    net = transformers.Qwen2ForCausalLM(transformers.AutoConfig.from_pretrained(plain["qwen2"]))
    shutil.copytree(plain["qwen2"], tmp_path / "plain")
    net.save_pretrained(tmp_path / "plain")
    encoder = mmcl.load(tmp_path / "plain", dtype="float32")
    assert encoder.embedder("text").tower.pooling == "last"
    texts = TEXTS[:3]
    assert_same(encoder.encode(texts), unit(theirs(library, tmp_path / "plain").encode(texts)))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dense", [(), DENSE])
def test_their_very_vectors_outlive_a_round_trip(library, plain, tmp_path, normalize, dense):
    """Their lengths too: a folder without a normalisation gains none, whether by our own description or by theirs."""
    options = {"normalize": normalize, "dense": dense, "similarity_fn_name": "dot"}
    model = made_by_them(library, plain["bert"], "mean", **options)
    expected = model.encode(TEXTS)
    model.save(str(tmp_path / "theirs"))
    mmcl.load(tmp_path / "theirs", dtype="float32").save(tmp_path / "once")
    encoder = mmcl.load(tmp_path / "once", dtype="float32")
    np.testing.assert_allclose(encoder.encode(TEXTS, normalize=normalize), expected, atol=1e-5)
    encoder.save(tmp_path / "twice")
    (tmp_path / "twice" / "mmcl.json").unlink()
    mmcl.load(tmp_path / "twice", dtype="float32").save(tmp_path / "thrice")
    for name in ("once", "twice", "thrice"):
        again = theirs(library, tmp_path / name)
        np.testing.assert_allclose(again.encode(TEXTS), expected, atol=1e-5)
        assert again.similarity_fn_name == "dot"
        modules = json.loads((tmp_path / name / "modules.json").read_text())
        assert [module["type"].endswith(".Normalize") for module in modules].count(True) == normalize


def test_a_plain_transformer_stays_without_a_normalisation(library, plain, tmp_path):
    expected = theirs(library, plain["bert"]).encode(TEXTS[:3])
    mmcl.load(plain["bert"], dtype="float32").save(tmp_path / "ours")
    np.testing.assert_allclose(theirs(library, tmp_path / "ours").encode(TEXTS[:3]), expected, atol=1e-5)


def test_older_folders_of_ours_have_unit_vectors(library, plain, tmp_path):
    """Whose descriptions say nothing of it, as all were written with a normalisation."""
    made_here(plain["bert"], "mean").save(tmp_path / "ours")
    description = json.loads((tmp_path / "ours" / "mmcl.json").read_text())
    del description["conventions"]
    write(tmp_path / "ours" / "mmcl.json", description)
    mmcl.load(tmp_path / "ours").save(tmp_path / "again")
    np.testing.assert_allclose(np.linalg.norm(theirs(library, tmp_path / "again").encode(TEXTS), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("dim", [5, 99])
def test_vectors_are_cut_where_the_folder_says(library, plain, tmp_path, dim):
    model = made_by_them(library, plain["bert"], "mean", normalize=False, truncate_dim=dim)
    model.save(str(tmp_path / "theirs"))
    expected = theirs(library, tmp_path / "theirs").encode(TEXTS)
    assert expected.shape[1] == min(dim, 16)
    encoder = mmcl.load(tmp_path / "theirs", dtype="float32")
    encoder.save(tmp_path / "ours")
    for opened in (encoder, mmcl.load(tmp_path / "ours", dtype="float32")):
        assert (opened.dim, opened.width) == (min(dim, 16), 16)
        np.testing.assert_allclose(opened.encode(TEXTS, normalize=False), expected, atol=1e-5)
        assert_same(opened.encode(TEXTS), unit(expected))
        assert_same(opened.encode(TEXTS, truncate_dim=16), unit(model.encode(TEXTS, truncate_dim=16)))
        (part,) = opened.encode_stream(TEXTS)
        assert_same(part, unit(expected))
    np.testing.assert_allclose(theirs(library, tmp_path / "ours").encode(TEXTS), expected, atol=1e-5)
