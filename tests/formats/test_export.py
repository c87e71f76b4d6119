from __future__ import annotations

import errno
import json

import numpy as np
import open_clip
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.nn.functional import normalize

import mmcl
from mmcl.config.data import ImageConfig
from mmcl.config.model import HeadConfig, ImageTowerConfig, TextTowerConfig, TokenizerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.encoding.encoder import Encoder
from mmcl.formats.export import export
from mmcl.formats.folder import save
from mmcl.formats.towers.image import build_image_tower
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError

from .conftest import CAPTIONS, TEXT, TINY, VISION, library_features, open_clip_folder, open_library, sample_images
from .transformers.test_clip import clip_folder, siglip_folder
from .transformers.test_clip import library_features as transformers_features

SHORT = CAPTIONS[:3]
WEIGHTS = "open_clip_model.safetensors"


def trained_here(image="open_clip:tiny-ViT", text="open_clip:tiny-ViT", head="linear", size=32, dim=12):
    """An encoder as a training run builds it, with weights that are no library's."""
    torch.manual_seed(1)
    settings = TextTowerConfig(name=text, width=32, layers=1, heads=2, dropout=0.0)
    tokenizer = train_tokenizer(CAPTIONS, TokenizerConfig(vocab_size=60), 20) if text == "scratch" else None
    images = build_image_tower(ImageTowerConfig(name=image), ImageConfig(size=size, resize="squash"))
    texts = build_text_tower(settings, tokenizer)
    embedders = {
        "image": ImageEmbedder(*images, Head(HeadConfig(kind=head), images[1].width, dim)),
        "text": TextEmbedder(*texts, Head(HeadConfig(kind=head), texts[1].width, dim)),
    }
    encoder = Encoder(Towers(embedders, dim, "ours"))
    encoder.set_compute("float32")  # as the libraries do
    return encoder


def sentences(pooling="mean", **prompts):
    """An encoder of texts alone."""
    settings = TextTowerConfig(width=32, layers=1, heads=2, dropout=0.0, pooling=pooling, prompts=prompts)
    processor, tower = build_text_tower(settings, train_tokenizer(CAPTIONS, TokenizerConfig(vocab_size=60), 20))
    encoder = Encoder(
        Towers({"text": TextEmbedder(processor, tower, Head(HeadConfig(kind="none"), 32, 32))}, 32, "words")
    ).eval()
    encoder.set_compute("float32")
    return encoder


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("image", ["open_clip:tiny-ViT", "open_clip:tiny-RN"])
def test_a_model_trained_here_opens_in_open_clip_with_its_head_folded_in(tmp_path, image):
    encoder = trained_here(image=image, size=64)
    encoder.logit_scale, encoder.logit_bias = 2.5, -7.0
    with torch.no_grad():
        for name, buffer in encoder.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.1)
    folder = export(encoder.towers, "open-clip", tmp_path / "theirs")
    library = open_library(folder)
    images, texts = library_features(*library)
    np.testing.assert_allclose(encoder.encode(sample_images()), images, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(CAPTIONS), texts, atol=1e-5)
    assert (library[0].logit_scale.item(), library[0].logit_bias.item()) == (2.5, -7.0)
    again = mmcl.load(folder, dtype="float32")
    np.testing.assert_allclose(again.encode(CAPTIONS), texts, atol=1e-5)
    assert (again.logit_scale, again.logit_bias) == (2.5, -7.0)


def test_what_came_from_open_clip_goes_back_unchanged(tmp_path):
    bidirectional = {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True}
    config = {**TINY, "quick_gelu": True, "text_cfg": bidirectional, "custom_text": True}
    expected = library_features(*open_clip_folder(tmp_path / "theirs", config, mean=[0.4] * 3, resize_mode="squash"))
    mmcl.load(tmp_path / "theirs").save(tmp_path / "ours")
    export(mmcl.load(tmp_path / "ours").towers, "open-clip", tmp_path / "back")
    for ours, theirs in zip(library_features(*open_library(tmp_path / "back")), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_contrastive_part_of_a_coca_opens_in_open_clip(tmp_path):
    """Its halves give tokens besides, which open_clip's ``CustomTextCLIP`` cannot take."""
    tokens = {"output_tokens": True}
    vision = {**VISION, **tokens, "attentional_pool": True, "attn_pooler_heads": 2}
    text = {**TEXT, **tokens, "embed_cls": True}
    (tmp_path / "theirs").mkdir()
    captions = {**TEXT, "attn_pooler_heads": 2}
    library = open_clip.CoCa(24, multimodal_cfg=captions, text_cfg=text, vision_cfg=vision).eval()
    state = {key: value.clone() for key, value in library.state_dict().items()}
    state |= {key: torch.full_like(value, torch.nan) for key, value in state.items() if key.startswith("text_decoder")}
    save_file(state, tmp_path / "theirs" / WEIGHTS)
    config = {"embed_dim": 24, "multimodal_cfg": captions, "text_cfg": text, "vision_cfg": vision}
    (tmp_path / "theirs" / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    expected = library_features(
        library, open_clip.image_transform(32, False), open_clip.SimpleTokenizer(context_length=20)
    )
    encoder = mmcl.load(tmp_path / "theirs", dtype="float32")
    np.testing.assert_allclose(encoder.encode(sample_images()), expected[0], atol=1e-5)
    np.testing.assert_allclose(encoder.encode(CAPTIONS), expected[1], atol=1e-5)
    export(encoder.towers, "open-clip", tmp_path / "back")
    for ours, theirs in zip(library_features(*open_library(tmp_path / "back")), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.usefixtures("tiny")
def test_what_a_library_does_otherwise_is_said(tmp_path, caplog):
    encoder = trained_here()
    encoder.embedder("text").processor.max_tokens = 12
    export(encoder.towers, "open-clip", tmp_path / "shorter")
    assert "open-clip cuts texts at 20 tokens, 'ours' at 12" in caplog.text
    clip_folder(tmp_path / "clip")
    encoder = mmcl.load(tmp_path / "clip")
    encoder.embedder("image").processor.resize = "pad"
    export(encoder.towers, "transformers", tmp_path / "padded")
    assert "squashes" in caplog.text
    export(sentences(query="find: ").towers, "transformers", tmp_path / "prompts")
    assert "transformers keeps no prompts; 'words' has query" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "ViT-B-32-quickgelu"])
def test_the_real_architectures_go_back_and_forth(tmp_path, name):
    expected = library_features(*open_clip_folder(tmp_path / name, open_clip.get_model_config(name)))
    export(mmcl.load(tmp_path / name).towers, "open-clip", tmp_path / "back")
    for ours, theirs in zip(library_features(*open_library(tmp_path / "back")), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("make", [clip_folder, siglip_folder])
def test_what_came_from_transformers_goes_back(tmp_path, make):
    model, tokenizer, processor = make(tmp_path / "theirs")
    expected = transformers_features(model, tokenizer, processor)
    encoder = mmcl.load(tmp_path / "theirs")
    encoder.logit_scale = 1.25
    export(encoder.towers, "transformers", tmp_path / "back")
    again = type(model).from_pretrained(tmp_path / "back").eval()
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    processor = type(processor).from_pretrained(tmp_path / "back")
    for ours, theirs in zip(transformers_features(again, tokenizer, processor), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert again.logit_scale.item() == 1.25
    np.testing.assert_allclose(mmcl.load(tmp_path / "back", dtype="float32").encode(CAPTIONS), expected[1], atol=1e-5)


def test_single_towers_go_to_transformers_and_sentence_transformers(tmp_path):
    from transformers import AutoModel

    sentence_transformers = pytest.importorskip("sentence_transformers")
    text = sentences()
    processor = text.embedder("text").processor
    export(text.towers, "transformers", tmp_path / "plain")
    net = AutoModel.from_pretrained(tmp_path / "plain").eval()
    inputs = processor.collate(processor.tokenize(SHORT)[0])
    with torch.no_grad():
        states = net(**inputs).last_hidden_state * inputs["attention_mask"][..., None]
    pooled = states.sum(dim=1) / inputs["attention_mask"].sum(dim=1, keepdim=True)
    np.testing.assert_allclose(text.encode(SHORT), normalize(pooled, dim=1), atol=1e-5)
    export(text.towers, "sentence-transformers", tmp_path / "sentences")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "sentences"), device="cpu")
    np.testing.assert_allclose(theirs.encode(SHORT), text.encode(SHORT), atol=1e-5)


def test_onnx_goes_to_its_own_writer(tmp_path, monkeypatch):
    def write(towers, folder):
        save(towers, folder)

    monkeypatch.setattr("mmcl.formats.export.export_onnx", write)
    text = sentences()
    again = mmcl.load(export(text.towers, "onnx", tmp_path / "graph"), dtype="float32")
    np.testing.assert_allclose(again.encode(SHORT), text.encode(SHORT), atol=1e-5)


@pytest.mark.usefixtures("tiny")
def test_what_has_no_place_in_a_library_is_refused_with_the_reason(tmp_path):
    towers = trained_here()
    for encoder, to, message in (
        (trained_here(head="mlp"), "open-clip", "no mlp heads"),
        (trained_here(text="open_clip:tiny-ViT-quickgelu"), "open-clip", "one activation"),
        (trained_here(text="scratch"), "open-clip", "has BertModel"),
        (towers, "transformers", "image tower of 'ours' did not"),
        (towers, "sentence-transformers", "text encoders of transformers and bags of words only"),
        (sentences("first_last"), "sentence-transformers", "no pooling 'first_last'; mmcl's own folders can"),
        (towers, "open-flip", "did you mean 'open-clip'"),
    ):
        with pytest.raises(MmclError, match=message):
            export(encoder.towers, to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["mmcl.json", "config.json", "open_clip_config.json"])
@pytest.mark.usefixtures("tiny")
def test_a_folder_that_holds_anything_is_never_replaced(tmp_path, file):
    """Every transformers model has a config.json, and so have many folders besides."""
    (tmp_path / file).write_text("{}")
    (tmp_path / "only_copy.safetensors").write_text("weights")
    with pytest.raises(MmclError, match="not replaced"):
        export(trained_here().towers, "open-clip", tmp_path)
    assert (tmp_path / "only_copy.safetensors").read_text() == "weights"


@pytest.mark.parametrize("to", ["mmcl", "transformers", "sentence-transformers"])
def test_a_disk_that_is_full_is_reported_as_such(tmp_path, monkeypatch, to):
    """Libraries in Rust raise an exception of their own, in which only the text says so."""
    encoder = sentences()

    def full(*_, **__):
        raise SafetensorError('Error while serializing: I/O error: No space left on device (os error 28) "model"')

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        encoder.save(tmp_path / "out") if to == "mmcl" else export(encoder.towers, to, tmp_path / "out")
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


@pytest.mark.parametrize("to", ["mmcl", "transformers", "sentence-transformers"])
def test_weights_can_be_read_by_whoever_may_read_the_folder(tmp_path, to):
    """Safetensors makes files for their owner alone."""
    encoder = sentences()
    folder = encoder.save(tmp_path / "out") if to == "mmcl" else export(encoder.towers, to, tmp_path / "out")
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*.safetensors")}
    assert modes == {folder.stat().st_mode & 0o666}
