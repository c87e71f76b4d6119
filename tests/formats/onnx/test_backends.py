"""A text tower in onnxruntime and in OpenVINO beside the same tower in torch."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import mmcl
from mmcl.config.model import TextTowerConfig
from mmcl.encoding import Encoder
from mmcl.formats.onnx.backends import open_backend
from mmcl.formats.onnx.graph import export_onnx, weights_key
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError

TEXTS = ["red stone", "a river of stones in winter", "", "letter " * 40, "winter"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "stone", "river", "winter", "letter", "a", "of", "in", "##s"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT, as transformers saves it."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=24,
        initializer_range=0.3,  # so that attention and order matter
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache, monkeypatch):
    """One cache for the file: graphs take seconds to write."""
    monkeypatch.setenv("MMCL_CACHE", str(cache))


def need(backend):
    names = ["onnx", "onnxscript", *(["onnxruntime"] if backend.startswith("onnx") else ["openvino"])]
    for name in [*names, *(["nncf"] if backend == "openvino-int8" else [])]:
        pytest.importorskip(name)


def vectors(folder, backend, pooling="mean"):
    encoder = mmcl.load(folder, dtype="float32")
    encoder.embedder("text").tower.set_pooling(pooling)
    open_backend(encoder.towers, backend)
    return encoder.encode(TEXTS)


@pytest.mark.parametrize("pooling", ["mean", "pooler", "first_last"])
@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_vectors_equal_torchs(folder, backend, pooling):
    need(backend)
    assert np.abs(vectors(folder, backend, pooling) - vectors(folder, "torch", pooling)).max() < 1e-5


@pytest.mark.parametrize("backend", ["onnx-int8", "openvino-int8"])
def test_int8_vectors_point_where_torchs_do(folder, backend):
    need(backend)
    assert (vectors(folder, backend) * vectors(folder, "torch")).sum(axis=1).min() > 0.99


def test_load_opens_the_backend(folder):
    need("onnx")
    encoder = mmcl.load(folder, backend="onnx")
    assert encoder.embedder("text").tower.net.backend == "onnx"
    assert np.abs(encoder.encode(TEXTS) - vectors(folder, "torch")).max() < 1e-5
    assert encoder.encode("winter").shape == (32,)


def test_a_session_refuses_to_learn_or_to_be_saved(folder, tmp_path):
    need("onnx")
    encoder = mmcl.load(folder, backend="onnx")
    processor, tower = encoder.embedder("text").processor, encoder.embedder("text").tower
    with pytest.raises(MmclError, match=r"cannot learn.*backend='torch'"):
        tower.train()(**processor.collate(processor.tokenize(TEXTS)[0]))
    with pytest.raises(MmclError, match="no weights to save"):
        encoder.save(tmp_path / "model")


def test_an_export_is_a_model_folder_whose_graph_is_found(folder, tmp_path, cache):
    need("onnx")
    import onnxruntime

    encoder = mmcl.load(folder, dtype="float32")
    export_onnx(encoder.towers, tmp_path / "out")
    assert encoder.path == folder
    session = onnxruntime.InferenceSession(tmp_path / "out" / "onnx" / "model.onnx")
    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [value.name for value in session.get_outputs()] == ["last_hidden_state"]
    kept = sorted(cache.glob("onnx/*"))
    opened = mmcl.load(tmp_path / "out", backend="onnx")
    assert np.abs(opened.encode(TEXTS) - encoder.encode(TEXTS)).max() < 1e-5
    assert sorted(cache.glob("onnx/*")) == kept


def test_a_graph_of_other_weights_is_not_taken(folder, tmp_path):
    need("onnx")
    encoder = mmcl.load(folder, dtype="float32")
    export_onnx(encoder.towers, tmp_path / "out")
    (tmp_path / "out" / "onnx" / "model.onnx").write_bytes(b"no graph")
    (tmp_path / "out" / "onnx" / "mmcl.json").write_text('{"weights": "those of another model"}')
    opened = mmcl.load(tmp_path / "out", backend="onnx")
    assert np.abs(opened.encode(TEXTS) - encoder.encode(TEXTS)).max() < 1e-5


def test_the_key_of_a_graph_follows_weights_and_pooling(folder):
    tower = mmcl.load(folder).embedder("text").tower
    keys = [weights_key(tower)]
    tower.set_pooling("first_last")
    keys.append(weights_key(tower))
    with torch.no_grad():
        tower.word_embeddings.weight[3, 0] += 1e-3
    keys.append(weights_key(tower))
    assert len(set(keys)) == 3
    assert weights_key(mmcl.load(folder).embedder("text").tower) == keys[0]


def test_what_a_session_does_follows_torchs_threads(folder, monkeypatch):
    need("onnx")
    import onnxruntime

    asked = []
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda graph, options, **more: asked.append(options.intra_op_num_threads) or real(graph, options, **more),
    )
    mmcl.load(folder, backend="onnx")
    assert asked == [torch.get_num_threads()]


@pytest.mark.parametrize(("backend", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_missing_package_is_named_with_its_extra(folder, backend, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MmclError, match=rf"{package}.*pip install 'mmcl\[{backend}\]'"):
        mmcl.load(folder, backend=backend)


def test_each_of_several_towers_runs_in_the_backend_and_is_known_again(folder, tmp_path):
    need("onnx")
    questions, answers = (mmcl.load(folder).towers.text() for _ in range(2))
    with torch.no_grad():
        answers.tower.net.embeddings.word_embeddings.weight.mul_(1.5)
    Encoder(Towers({"question": questions, "answer": answers}, 32, "qa")).eval().save(tmp_path / "qa")
    plain, run = (mmcl.load(tmp_path / "qa", dtype="float32", backend=backend) for backend in ("torch", "onnx"))
    for name in ("question", "answer"):
        assert run.embedder(name).tower.net.backend == "onnx"
        ours, theirs = run.select(name), plain.select(name)
        np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)
        assert ours.fingerprint() == theirs.fingerprint()  # an index of torch's vectors is searched by either
    assert run.fingerprint() == plain.fingerprint()
    run.towers.text("answer").processor.max_tokens = 7  # decides the vectors, whoever holds the weights
    assert run.fingerprint() != plain.fingerprint()


def test_an_unknown_backend_is_refused_with_the_nearest(folder):
    with pytest.raises(MmclError, match="did you mean 'onnx-int8'"):
        mmcl.load(folder, backend="onnx-int4")


def test_an_open_clip_tower_is_refused(tiny):
    section = TextTowerConfig(name="open_clip:tiny-ViT", pretrained=False, head={"kind": "none"})
    processor, tower = build_text_tower(section)
    towers = Towers({"text": TextEmbedder(processor, tower, Head(section.head, tower.width, tower.width))}, tower.width)
    with pytest.raises(MmclError, match="only text towers of transformers"):
        open_backend(towers, "onnx")
