"""CLIP's kin in transformers' format, and image halves alone, tiny, against transformers' own features."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers

import mmcl
from mmcl.config.model import TokenizerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.formats.export import export
from mmcl.runtime.errors import MmclError
from mmcl.training import train

from ..conftest import CAPTIONS, sample_images
from .test_clip import TEXT, VISION, check_equal, clip_folder, finish, library_features

SMALL = {**VISION, "image_size": 32, "patch_size": 8}
BERT = {**TEXT, "max_position_embeddings": 22}


@pytest.fixture(autouse=True)
def tokenizer():
    return train_tokenizer(CAPTIONS, TokenizerConfig(vocab_size=60), 20)


def metaclip(folder, tokenizer):
    """Its text half reads the first end token, and its projections are the model's."""
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    config = transformers.MetaClip2Config(
        text_config={**TEXT, **ids, "vocab_size": len(tokenizer)}, vision_config=SMALL, projection_dim=24
    )
    return finish(
        transformers.MetaClip2Model(config), tokenizer, "CLIPImageProcessorPil", folder, {"shortest_edge": 32}
    )


def chinese_clip(folder, tokenizer):
    config = transformers.ChineseCLIPConfig(
        text_config={**BERT, "vocab_size": len(tokenizer), "type_vocab_size": 2}, vision_config=SMALL, projection_dim=24
    )
    model = transformers.ChineseCLIPModel(config)
    return finish(model, tokenizer, "ChineseCLIPImageProcessorPil", folder, {"shortest_edge": 32})


def dual_encoder(folder, tokenizer, vision="ViT", text="Bert"):
    texts = getattr(transformers, f"{text}Config")(**BERT, vocab_size=len(tokenizer), pad_token_id=0)
    images = getattr(transformers, f"{vision}Config")(**SMALL)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(images, texts, projection_dim=24)
    model = transformers.VisionTextDualEncoderModel(config)
    return finish(model, tokenizer, "ViTImageProcessorPil", folder, {"height": 32, "width": 32})


def clip_and_roberta(folder, tokenizer):
    return dual_encoder(folder, tokenizer, "CLIPVision", "Roberta")


KIN = (metaclip, chinese_clip, dual_encoder, clip_and_roberta)


@pytest.mark.parametrize("make", KIN)
def test_a_folder_gives_the_librarys_own_features_and_so_does_what_is_saved(tmp_path, tokenizer, make):
    library = make(tmp_path / "theirs", tokenizer)
    expected = library_features(*library)
    encoder = mmcl.load(tmp_path / "theirs")
    check_equal(encoder, *expected)
    assert (encoder.dim, encoder.modalities, encoder.logit_bias) == (24, {"image", "text"}, None)
    assert encoder.logit_scale == pytest.approx(library[0].logit_scale.item())
    encoder.save(tmp_path / "ours")
    check_equal(mmcl.load(tmp_path / "ours"), *expected)
    twice = mmcl.load(tmp_path / "theirs", dtype="float32"), mmcl.load(tmp_path / "ours", dtype="float32")
    assert twice[0].fingerprint() == twice[1].fingerprint()


def test_both_halves_go_back_into_one_model(tmp_path, tokenizer):
    expected = library_features(*metaclip(tmp_path / "theirs", tokenizer))
    export(mmcl.load(tmp_path / "theirs").towers, "transformers", tmp_path / "back")
    model = transformers.AutoModel.from_pretrained(tmp_path / "back").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "back", backend="pil")
    assert isinstance(model, transformers.MetaClip2Model)
    for ours, theirs in zip(library_features(model, tokenizer, processor), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("make", [metaclip, chinese_clip, dual_encoder])
def test_all_of_a_model_is_trained(tmp_path, tokenizer, make):
    make(tmp_path / "start", tokenizer)
    rows = []
    for place, image in enumerate(sample_images() * 2):
        image.save(tmp_path / f"{place}.png")
        rows.append({"image": f"{place}.png", "text": f"{CAPTIONS[place % 2]} {place}"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "method": {"name": "clip"},
        "data": {"train": {"source": str(tmp_path / "rows.jsonl")}},
        "model": {"name": str(tmp_path / "start")},
        "training": {"epochs": 1, "batch_size": 6, "lr": 1e-2, "precision": "float32", "device": "cpu"},
    }
    train(config, out=tmp_path / "run", show_progress=False)
    before, after = (mmcl.load(tmp_path / name, dtype="float32") for name in ("start", "run"))
    for inputs in (CAPTIONS, sample_images()):
        assert np.abs(before.encode(inputs) - after.encode(inputs)).max() > 1e-3
    learned = dict(after.towers.named_parameters())
    still = [name for name, weight in before.towers.named_parameters() if torch.equal(weight, learned[name])]
    assert all("pooler" in name for name in still)  # of Chinese-CLIP, which is not read


VISION_ONLY = {
    "CLIPVisionModel": ("CLIPVisionConfig", "CLIPImageProcessorPil"),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", "CLIPImageProcessorPil"),
    "MetaClip2VisionModelWithProjection": ("MetaClip2VisionConfig", "CLIPImageProcessorPil"),
    "ChineseCLIPVisionModel": ("ChineseCLIPVisionConfig", "ChineseCLIPImageProcessorPil"),
    "SiglipVisionModel": ("SiglipVisionConfig", "SiglipImageProcessorPil"),
    "Dinov2Model": ("Dinov2Config", "ViTImageProcessorPil"),
    "ViTModel": ("ViTConfig", "ViTImageProcessorPil"),
}


def vision_only(folder, architecture):
    """A folder with an image half alone, and the library's own unit-length features."""
    config, kind = VISION_ONLY[architecture]
    torch.manual_seed(0)
    extra = {"projection_dim": 24} if "Projection" in architecture else {}
    model = getattr(transformers, architecture)(getattr(transformers, config)(**SMALL, **extra)).eval()
    model.save_pretrained(folder)
    square = {"height": 32, "width": 32}
    crop = {"size": {"shortest_edge": 32}, "crop_size": square} if "CLIP" in kind else {"size": square}
    processor = getattr(transformers, kind)(**crop)
    processor.save_pretrained(folder)
    with torch.no_grad():
        output = model(**processor(sample_images(), return_tensors="pt"))
    vectors = output.image_embeds if "Projection" in architecture else output.pooler_output
    return torch.nn.functional.normalize(vectors, dim=1).numpy()


@pytest.mark.parametrize("architecture", VISION_ONLY)
def test_an_image_half_alone_gives_its_own_vectors_and_so_does_what_is_saved(tmp_path, architecture):
    expected = vision_only(tmp_path / "theirs", architecture)
    encoder = mmcl.load(tmp_path / "theirs", dtype="float32")
    assert encoder.modalities == {"image"}
    np.testing.assert_allclose(encoder.encode(sample_images()), expected, atol=1e-5)
    again = mmcl.load(encoder.save(tmp_path / "ours"), dtype="float32")
    np.testing.assert_array_equal(again.encode(sample_images()), encoder.encode(sample_images()))


@pytest.mark.parametrize("architecture", ["CLIPVisionModelWithProjection", "SiglipVisionModel"])
def test_the_image_processor_of_a_known_kind_need_not_be_there(tmp_path, architecture):
    expected = vision_only(tmp_path, architecture)
    (tmp_path / "preprocessor_config.json").unlink()
    np.testing.assert_allclose(mmcl.load(tmp_path, dtype="float32").encode(sample_images()), expected, atol=1e-5)


def test_what_cannot_be_opened_is_refused_in_one_line(tmp_path, tokenizer):
    vision_only(tmp_path / "vit", "ViTModel")
    (tmp_path / "vit" / "preprocessor_config.json").unlink()
    dual_encoder(tmp_path / "dual", tokenizer)
    (tmp_path / "dual" / "preprocessor_config.json").unlink()
    clip_folder(tmp_path / "group")
    described = json.loads((tmp_path / "group" / "config.json").read_text())
    (tmp_path / "group" / "config.json").write_text(json.dumps(described | {"model_type": "groupvit"}))
    for name, message in (
        ("vit", "no image processor; put the model's preprocessor_config"),
        ("dual", "no image processor; put the model's preprocessor_config"),
        ("group", "a 'groupvit' model is of images and texts, but of such models only CLIPModel, MetaClip2Model, "),
    ):
        with pytest.raises(MmclError, match=message) as caught:
            mmcl.load(tmp_path / name)
        assert "\n" not in str(caught.value)
