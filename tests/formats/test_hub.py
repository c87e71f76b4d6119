"""What is fetched of a model on the hub, with the hub's own matching of patterns over a list of files."""

from __future__ import annotations

import json

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from mmcl.formats.hub import fetch

TOP = ["config.json", "tokenizer.json", "vocab.txt", "README.md", "onnx/model.onnx", "onnx/config.json"]
POOLING = ["modules.json", "1_Pooling/config.json"]
REPOSITORIES = {
    "safetensors alone": ([*TOP, "model.safetensors"], ["model.safetensors"]),
    "weights twice": ([*TOP, "model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
    "older weights": ([*TOP, "pytorch_model.bin", "tf_model.h5"], ["pytorch_model.bin"]),
    "older weights in parts": (
        [*TOP, *(name := [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]), "pytorch_model.bin.index.json"],
        name,
    ),
    "a dense layer of its own": (
        [*TOP, *POOLING, "model.safetensors", "2_Dense/config.json", "2_Dense/pytorch_model.bin"],
        ["model.safetensors", "2_Dense/pytorch_model.bin"],
    ),
    "a dense layer twice": (
        [*TOP, *POOLING, "pytorch_model.bin", "2_Dense/model.safetensors", "2_Dense/pytorch_model.bin"],
        ["pytorch_model.bin", "2_Dense/model.safetensors"],
    ),
    "the transformer in a folder": (
        ["modules.json", *(f"0_Transformer/{name}" for name in (*TOP, "pytorch_model.bin", "spiece.model"))],
        ["0_Transformer/pytorch_model.bin"],
    ),
    "folders with a slash at the end": (
        [
            "modules.json",
            "3_Dense/config.json",
            "3_Dense/pytorch_model.bin",
            "a/b/pytorch_model.bin",
            "a/b/config.json",
        ],
        ["3_Dense/pytorch_model.bin", "a/b/pytorch_model.bin"],
    ),
    "other tensors beside older weights": (
        [*TOP, "pytorch_model.bin", "training_head.safetensors"],
        ["pytorch_model.bin", "training_head.safetensors"],
    ),
    "pieces of words in files of their own": (
        [*TOP, "source.spm", "target.spm", "prophetnet.tokenizer", "model.safetensors"],
        ["model.safetensors"],
    ),
    "adapters": (["adapter_config.json", "adapter_model.safetensors"], ["adapter_model.safetensors"]),
    "older adapters": (["adapter_config.json", "adapter_model.bin"], ["adapter_model.bin"]),
}


@pytest.mark.parametrize("kind", REPOSITORIES)
def test_weights_are_fetched_wherever_they_lie_and_once(tmp_path, monkeypatch, kind):
    files, wanted = REPOSITORIES[kind]
    modules = [{"path": path} for path in ("", "0_Transformer", "1_Pooling", "2_Dense", "3_Dense/", "./a/b/")]

    def download(name, allow_patterns, ignore_patterns):
        assert name == "org/name"
        for file in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text(json.dumps(modules) if file == "modules.json" else "{}")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    fetch("org/name")
    fetched = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {file for file in fetched if file.endswith((".safetensors", ".bin", ".h5", ".onnx"))} == set(wanted)
    settings = {
        file
        for file in files
        if file.endswith((".json", ".txt", ".model", ".spm", ".tokenizer")) and "onnx/" not in file
    }
    assert settings <= fetched
