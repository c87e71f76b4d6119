"""Model folders: what they keep beside the weights, and what older and broken ones give."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import mmcl
from mmcl.config.model import HeadConfig, TextTowerConfig, TokenizerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.encoding.encoder import Encoder
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head, Prototypes
from mmcl.models.layers import Dense
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.towers import Towers
from mmcl.runtime.device import multiplies_int8
from mmcl.runtime.errors import MmclError

TEXTS = ["a big red dog", "a small blue car"]


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    settings = TextTowerConfig(layers=1, width=16, heads=2, prompts={"query": "a | b: ", "document": ""})
    processor, tower = build_text_tower(settings, train_tokenizer(TEXTS, TokenizerConfig(vocab_size=40), 20))
    processor.set_prompts(settings.prompts, "query")
    encoder = Encoder(Towers({"text": TextEmbedder(processor, tower, Head(HeadConfig(), 16, 8))}, 8, "tiny")).eval()
    encoder.set_compute("float32")
    return encoder


@pytest.mark.parametrize("pooling", ["mean", "first_last"])  # a folder of sentence-transformers', and one of ours alone
def test_heads_are_kept_beside_what_embeds(encoder, tmp_path, pooling):
    encoder.embedder("text").tower.set_pooling(pooling)
    expected = encoder.encode(TEXTS)
    heads = {
        "mlp": Head(HeadConfig(kind="tanh"), 8, 8),
        "projector": Head.from_layers(8, [Dense(5, False, "relu", "batch"), Dense(6, True, "gelu", "layer"), Dense(4)]),
        "predictor": Head.from_layers(4, [Dense(4, bias=False)], dropout=0.5),
        "prototypes": Prototypes(4, 7),
    }
    encoder.towers.heads = heads
    loaded = mmcl.load(encoder.save(tmp_path / "model"), dtype="float32")
    assert list(loaded.towers.heads) == list(heads)
    for name, head in heads.items():
        again, features = loaded.towers.heads[name].eval(), torch.randn(6, head.width)
        torch.testing.assert_close(again(features), head.eval()(features), rtol=0, atol=0)
        assert (again.architecture(), again.spec(), again.dim) == (head.architecture(), head.spec(), head.dim)
    np.testing.assert_array_equal(loaded.encode(TEXTS), expected)
    assert loaded.state_dict().keys() == encoder.state_dict().keys()
    (tmp_path / "model" / "heads.safetensors").unlink()
    with pytest.raises(MmclError, match=r"heads\.safetensors: the weights are missing"):
        mmcl.load(tmp_path / "model", dtype="float32")
    encoder.towers.heads = {}
    encoder.save(tmp_path / "model")
    assert mmcl.load(tmp_path / "model", dtype="float32").towers.heads == {}
    assert not (tmp_path / "model" / "heads.safetensors").exists()


def test_the_one_head_of_format_4_is_the_projector(encoder, tmp_path):
    head = Head.from_layers(8, [Dense(5, False, "relu", "layer"), Dense(4)])
    path = encoder.save(tmp_path / "model") / "mmcl.json"
    description = json.loads(path.read_text()) | {"format_version": 4, "training_head": {"dim": 4, **head.spec()}}
    del description["heads"]
    path.write_text(json.dumps(description))
    save_file(head.state_dict(), tmp_path / "model" / "training_head.safetensors")
    heads, features = mmcl.load(tmp_path / "model", dtype="float32").towers.heads, torch.randn(3, 8)
    assert list(heads) == ["projector"]
    torch.testing.assert_close(heads["projector"](features), head(features), rtol=0, atol=0)


@pytest.mark.parametrize("pooling", ["weighted_mean", "last_two"])
def test_heads_of_any_dense_layers_come_back(encoder, tmp_path, pooling):
    processor, tower = encoder.embedder("text").processor, encoder.embedder("text").tower
    tower.set_pooling(pooling)
    head = Head.from_layers(16, [Dense(12, activation="relu"), Dense(6, bias=False)], dropout=0.25)
    ours = Encoder(Towers({"text": TextEmbedder(processor, tower, head)}, 6, "tiny")).eval()
    ours.set_compute("float32")
    loaded = mmcl.load(ours.save(tmp_path / "model"), dtype="float32")
    np.testing.assert_array_equal(loaded.encode(TEXTS), ours.encode(TEXTS))
    assert loaded.embedder("text").head.spec() == head.spec()


def test_folders_of_format_2_still_open(encoder, tmp_path):
    """Whose descriptions name no default prompt, no case and no training head."""
    encoder.embedder("text").processor.set_prompts({})
    encoder.save(tmp_path / "model")
    path = tmp_path / "model" / "mmcl.json"
    description = json.loads(path.read_text())
    for key in ("default_prompt", "include_prompt", "lowercase"):
        del description["towers"]["text"]["tower"][key]
    path.write_text(json.dumps(description | {"format_version": 2}))
    np.testing.assert_array_equal(mmcl.load(tmp_path / "model", dtype="float32").encode(TEXTS), encoder.encode(TEXTS))


def test_the_card_tells_how_to_use_the_model(encoder, tmp_path):
    encoder.towers.heads = {"projector": Head(HeadConfig(kind="tanh"), 8, 8), "prototypes": Prototypes(8, 3)}
    encoder.card = {"training": {"matryoshka": [8, 4]}}
    card = (encoder.save(tmp_path / "model") / "README.md").read_text()
    for line in (
        '| prompt `query`, the default | `"a \\\\| b: "` |'.replace("\\\\", "\\"),
        "| prompt `document` | none |",
        "| pooling | mean |",
        "| tokens | longer texts are cut after 64 |",
        "`encode(truncate_dim=…)` keeps the first, as it was trained to: 8, 4",
        "`heads.safetensors`: what stood before the loss in training (projector and prototypes)",
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
    for dtype in ("bfloat16", "int8") if multiplies_int8(torch.device("cpu")) else ("bfloat16",):
        with pytest.raises(MmclError, match=f"dtype {dtype}: the backend 'onnx' computes in a precision of its own"):
            mmcl.load(tmp_path / "model", dtype=dtype, backend="onnx")


def change(path, keys, value):
    """Put ``value`` at ``keys`` of a JSON file."""
    content = inner = json.loads(path.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


TOWER = ("towers", "text", "tower")


@pytest.mark.parametrize(
    ("file", "keys", "value"),
    [
        ("mmcl.json", ("towers",), "x"),
        ("mmcl.json", ("towers",), [1]),
        ("mmcl.json", ("towers",), {"sound": {}}),
        ("mmcl.json", ("towers", "text"), None),
        ("mmcl.json", ("format_version",), "3"),
        ("mmcl.json", ("dim",), 1 << 40),
        ("mmcl.json", ("dim",), "x"),
        ("mmcl.json", ("name",), 3),
        ("mmcl.json", ("card",), []),
        ("mmcl.json", ("conventions",), "x"),
        ("mmcl.json", ("logit_scale",), float("inf")),
        ("mmcl.json", (*TOWER, "max_tokens"), 1 << 40),
        ("mmcl.json", (*TOWER, "max_tokens"), float("nan")),
        ("mmcl.json", (*TOWER, "prompts"), {"query": None}),
        ("mmcl.json", (*TOWER, "pooling"), 7),
        ("mmcl.json", (*TOWER, "config"), []),
        ("mmcl.json", (*TOWER, "config", "num_hidden_layers"), 1 << 40),
        ("mmcl.json", (*TOWER, "config", "vocab_size"), 1 << 40),
        ("mmcl.json", (*TOWER, "config", "vocab_size"), 1 << 22),
        ("mmcl.json", (*TOWER, "config", "num_attention_heads"), -1),
        ("mmcl.json", (*TOWER, "config", "model_type"), {"a": 1}),
        ("config.json", ("num_hidden_layers",), 1 << 40),
        ("config.json", ("hidden_size",), 1e30),
        ("config.json", ("vocab_size",), "x"),
        ("config.json", ("max_position_embeddings",), 1 << 23),
        ("config.json", ("num_attention_heads",), 0),
        ("config.json", ("model_type",), "no-such-model"),
        ("config.json", ("model_type",), [1]),
        ("modules.json", (0, "path"), None),
        ("modules.json", (0, "type"), 3),
        ("modules.json", (1,), "x"),
        ("1_Pooling/config.json", ("pooling_mode",), 3),
        ("2_Dense/config.json", ("out_features",), 1 << 40),
        ("2_Dense/config.json", ("activation_function",), "torch.nn.__import__"),
        ("sentence_bert_config.json", ("max_seq_length",), "x"),
        ("tokenizer.json", ("model",), {"type": "Unigram", "vocab": [], "unk_id": 5}),
        ("tokenizer.json", ("post_processor", "special_tokens"), {}),
        ("tokenizer_config.json", ("tokenizer_class",), [1]),
    ],
)
def test_a_file_with_a_value_of_another_kind_or_size_is_refused_in_one_line(encoder, tmp_path, file, keys, value):
    folder = encoder.save(tmp_path / "model")
    if file != "mmcl.json":
        (folder / "mmcl.json").unlink()
    change(folder / file, keys, value)
    with pytest.raises(MmclError) as caught:
        mmcl.load(folder).encode(TEXTS)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize("ours", [True, False])
def test_weights_that_are_not_finite_are_refused_by_name(encoder, tmp_path, ours):
    with torch.no_grad():
        encoder.embedder("text").tower.net.embeddings.word_embeddings.weight[3, 2] = float("nan")
    folder = encoder.save(tmp_path / "model")
    if not ours:
        (folder / "mmcl.json").unlink()
    with pytest.raises(MmclError, match=r"tensor '.*word_embeddings\.weight' has 1 values that are NaN"):
        mmcl.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"), (b"<html>", "a web page")],
)
def test_what_stands_in_a_folder_in_the_place_of_weights_is_reported(encoder, tmp_path, name, content, message):
    folder = encoder.save(tmp_path / "model")
    (folder / "mmcl.json").unlink()
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(MmclError, match=message) as caught:
        mmcl.load(folder)
    assert name in str(caught.value)


def test_a_pickle_among_a_folders_weights_is_not_run_and_its_object_is_named(encoder, tmp_path):
    class Runs:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'written'}",)

    folder = encoder.save(tmp_path / "model")
    (folder / "mmcl.json").unlink()
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(2), "other": Runs()}, folder / "pytorch_model.bin")
    with pytest.raises(MmclError, match=r"\(posix\.system\) beside its tensors") as caught:
        mmcl.load(folder)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("kind", ["auto_map", "kernel"])
def test_code_that_a_folder_brings_or_names_is_not_run(encoder, tmp_path, kind):
    folder = encoder.save(tmp_path / "model")
    (folder / "mmcl.json").unlink()
    code = f"from pathlib import Path\nPath({str(tmp_path / 'written')!r}).write_text('')\nclass Own: pass\n"
    (folder / "own.py").write_text(code)
    if kind == "auto_map":
        own = {"AutoConfig": "own.Own", "AutoModel": "own.Own"}
        change(folder / "config.json", ("auto_map",), own)
        change(folder / "config.json", ("model_type",), "own")
        change(folder / "tokenizer_config.json", ("auto_map",), {"AutoTokenizer": ["own.Own", "own.Own"]})
    else:
        change(folder / "config.json", ("attn_implementation",), "somebody/attention")
    with pytest.raises(MmclError, match=r"config\.json (cannot be opened|names code of the hub)"):
        mmcl.load(folder)
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("content", ["[" * 100_000, '{"dim": ' + "9" * 5000 + "}", "\ufeff{}", "nul"])
def test_a_description_that_no_parser_takes_is_damaged(encoder, tmp_path, content):
    folder = encoder.save(tmp_path / "model")
    (folder / "mmcl.json").write_text(content)
    with pytest.raises(MmclError, match=r"mmcl\.json: damaged"):
        mmcl.load(folder)
