"""Folders of sentence-transformers that cannot be read as they ask to be: what is refused, and why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import mmcl
from mmcl.config.model import TokenizerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.runtime.errors import MmclError

from .made import CORPUS, write


def refusal(folder):
    with pytest.raises(MmclError) as caught:
        mmcl.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("sentence_transformers.models.SpladePooling", "its module 'SpladePooling' is not supported"),
        ("sentence_transformers.models.LayerNorm", "of no LayerNorm (KeyError: 'dimension')"),
        ("sentence_transformers.models.StaticEmbedding", "its modules are Transformer, Pooling, StaticEmbedding"),
        ("sentence_transformers.models.Router", "its modules are Transformer, Pooling, Router"),
        ("sentence_transformers.models.CNN", "cnn_config.json: is missing"),
        ("custom_code.Dense", "'custom_code.Dense' is code of its own"),
        ("sentence_transformers.models.Pooling", "its modules are Transformer, Pooling, Pooling"),
    ],
)
def test_modules_that_cannot_be_read_are_named(folder, kind, message):
    modules = json.loads((folder / "modules.json").read_text())
    modules[2]["type"] = kind
    write(folder / "modules.json", modules)
    assert message in refusal(folder)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("modules.json", None, "not a list of modules"),
        ("2_Dense/config.json", {"in_features": 12}, "reads 12 features, but the pooling gives 16"),
        ("2_Dense/config.json", {"out_features": 9}, "linear.weight 8×16, but its config describes linear.bias 9"),
        ("2_Dense/config.json", {"activation_function": "os.system"}, "activation 'os.system' is not supported"),
        ("2_Dense/config.json", {"use_residual": True}, "but its config describes"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "works on 'token_embeddings' behind"),
        ("2_Dense/config.json", {"module_output_name": "token_embeddings"}, "to 'token_embeddings', which is not"),
        ("2_Dense/config.json", {"in_features": "many"}, "2_Dense/config.json: damaged"),
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, "pooling 'attention' is not supported"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "SparseEncoder"),
        ("config_sentence_transformers.json", {"default_prompt_name": "nobody"}, "default prompt 'nobody'"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "does fill-mask"),
        ("config.json", {"vocab_size": 7}, ""),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_the_reason(folder, file, change, message):
    values = json.loads((folder / file).read_text())
    write(folder / file, {} if change is None else values | change)
    assert message in refusal(folder)


def test_what_is_missing_is_named(folder, tmp_path):
    def without(*names):
        copy = tmp_path / f"without_{names[0].replace('/', '_')}"
        shutil.copytree(folder, copy)
        for name in names:
            (copy / name).unlink()
        return refusal(copy)

    assert "tokenizer" in without("tokenizer.json")
    assert "tokenizer" in without("tokenizer_config.json", "tokenizer.json")
    assert "model.safetensors" in without("model.safetensors")
    assert "weights are missing" in without("2_Dense/model.safetensors")
    assert "config.json" in without("config.json")
    for name in ("1_Pooling/config.json", "2_Dense/config.json"):
        assert f"{name}: is missing, but modules.json lists its folder" in without(name)


@pytest.mark.parametrize(("place", "name"), [(0, "0_Transformer"), (1, "1_Pooling"), (2, "2_Dense")])
def test_a_listed_folder_that_is_not_there_is_named(folder, place, name):
    modules = json.loads((folder / "modules.json").read_text())
    modules[place]["path"] = name
    write(folder / "modules.json", modules)
    shutil.rmtree(folder / name, ignore_errors=True)
    assert str(folder / name) in refusal(folder)


def test_a_normalisation_needs_no_folder(folder):
    """Which is empty, and lost where folders are kept by their files alone."""
    shutil.rmtree(folder / "3_Normalize")
    assert mmcl.load(folder).dim == 8


def test_paths_stay_within_the_folder_and_pickles_hold_tensors_alone(folder):
    modules = json.loads((folder / "modules.json").read_text())
    write(folder / "modules.json", [modules[0] | {"path": "../elsewhere"}, *modules[1:]])
    assert "leads out of the folder" in refusal(folder)
    write(folder / "modules.json", modules)
    (folder / "2_Dense" / "model.safetensors").unlink()
    torch.save({"linear.weight": Path("anything but a tensor")}, folder / "2_Dense" / "pytorch_model.bin")
    assert "never unpickled" in refusal(folder)


def test_a_tokenizer_of_another_model_is_refused(folder):
    train_tokenizer([*CORPUS, "zebras vex quick jumping foxes"], TokenizerConfig(vocab_size=90), 20).save_pretrained(
        folder
    )
    assert "do not belong together" in refusal(folder)


def test_what_a_folder_asks_for_that_encode_has_to_be_given_is_said(folder, caplog):
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    write(folder / "config_sentence_transformers.json", settings | {"similarity_fn_name": "dot"})
    modules = json.loads((folder / "modules.json").read_text())
    write(folder / "modules.json", modules[:-1])
    mmcl.load(folder)
    assert "compared by dot: encode(normalize=False)" in caplog.text


@pytest.mark.parametrize("dim", [0, -1, 2.5, "8", True])
def test_dimensions_that_nothing_can_be_cut_to_are_refused(folder, dim):
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    write(folder / "config_sentence_transformers.json", settings | {"truncate_dim": dim})
    assert f"truncate_dim is {dim!r}" in refusal(folder)
