"""SigLIP 2 of images of any shape, tiny, against transformers' own features."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import mmcl
from mmcl.config.model import TokenizerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.formats.export import export
from mmcl.formats.folder import preprocessor
from mmcl.formats.transformers.image_processors import preprocessing
from mmcl.runtime.errors import MmclError
from mmcl.training import train

from ..conftest import CAPTIONS
from .test_clip import TEXT, VISION, finish


def shaped_images():
    """Squares, long and tall ones, and one smaller than a patch."""
    generator = np.random.default_rng(0)
    sides = [(32, 32), (80, 50), (41, 161), (300, 20), (5, 3), (64, 63)]
    return [Image.fromarray(generator.integers(0, 256, (*side, 3), dtype=np.uint8)) for side in sides]


def naflex(folder, most=16, padding_side="left"):
    tokenizer = train_tokenizer(CAPTIONS, TokenizerConfig(vocab_size=60), 20)
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = padding_side
    config = transformers.Siglip2Config(
        text_config={**TEXT, "vocab_size": len(tokenizer) + 1, "projection_size": 32},  # and one for a mask
        vision_config={**VISION, "num_patches": 16, "patch_size": 8},
    )
    net = transformers.Siglip2Model(config)
    model, *_ = finish(net, tokenizer, "SiglipImageProcessorPil", folder, {"height": 32, "width": 32})
    processor = transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=most)
    processor.save_pretrained(folder)
    return model, transformers.AutoTokenizer.from_pretrained(folder), processor


@torch.no_grad()
def own_features(model, tokenizer, processor):
    images = model.get_image_features(**processor(shaped_images(), return_tensors="pt")).pooler_output
    read = tokenizer(CAPTIONS, padding="max_length", max_length=20, truncation=True, return_tensors="pt")
    texts = model.get_text_features(**read).pooler_output
    return [torch.nn.functional.normalize(features, dim=1).numpy() for features in (images, texts)]


@pytest.mark.parametrize("most", [16, 36])
def test_images_keep_their_shapes_and_vectors_are_the_librarys(tmp_path, most):
    images, texts = own_features(*naflex(tmp_path / "theirs", most))
    encoder = mmcl.load(tmp_path / "theirs", dtype="float32")
    np.testing.assert_allclose(encoder.encode(shaped_images()), images, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(CAPTIONS), texts, atol=1e-5)
    one_by_one = np.stack([encoder.encode(image) for image in shaped_images()])
    np.testing.assert_allclose(one_by_one, images, atol=1e-5)
    assert encoder.logit_bias is not None
    again = mmcl.load(encoder.save(tmp_path / "ours"), dtype="float32")
    np.testing.assert_array_equal(again.encode(shaped_images()), encoder.encode(shaped_images()))
    np.testing.assert_array_equal(again.encode(CAPTIONS), encoder.encode(CAPTIONS))
    processor = encoder.embedder("image").processor
    theirs = transformers.Siglip2ImageProcessorPil(**preprocessor(processor))
    assert preprocessing(theirs, "ours") == processor


def test_both_halves_go_back_into_one_model(tmp_path):
    expected = own_features(*naflex(tmp_path / "theirs"))
    export(mmcl.load(tmp_path / "theirs").towers, "transformers", tmp_path / "back")
    model = transformers.AutoModel.from_pretrained(tmp_path / "back").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "back", backend="pil")
    assert isinstance(model, transformers.Siglip2Model)
    for ours, theirs in zip(own_features(model, tokenizer, processor), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("most", [256, 1024])
def test_the_grid_of_patches_is_the_librarys(most):
    from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

    from mmcl.data.patches import patch_grid

    generator = np.random.default_rng(0)
    sides = [*generator.integers(1, 4000, (60, 2)).tolist(), [1, 4000], [4000, 1], [16, 16], [224, 224], [512, 384]]
    for height, width in sides:
        expected = get_image_size_for_max_num_patches(height, width, 16, most)
        assert tuple(16 * count for count in patch_grid(height, width, 16, most)) == expected


def test_the_image_half_alone_opens_without_its_processor_too(tmp_path):
    model, tokenizer, processor = naflex(tmp_path / "both")
    model.vision_model.save_pretrained(tmp_path / "half")
    encoder = mmcl.load(tmp_path / "half", dtype="float32")
    images, _ = own_features(model, tokenizer, processor)
    np.testing.assert_allclose(encoder.encode(shaped_images()), images, atol=1e-5)


@pytest.mark.parametrize("augmentation", [{}, {"crop_scale": [0.5, 1.0], "flip": 0.5}])
def test_all_of_it_is_trained(tmp_path, augmentation):
    naflex(tmp_path / "start")
    rows = []
    for place, image in enumerate(shaped_images()):
        image.save(tmp_path / f"{place}.png")
        rows.append({"image": f"{place}.png", "text": f"{CAPTIONS[place % 2]} {place}"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "method": {"name": "siglip"},
        "data": {"train": {"source": str(tmp_path / "rows.jsonl")}},
        "augmentation": augmentation,
        "model": {"name": str(tmp_path / "start")},
        "training": {"epochs": 1, "batch_size": 6, "lr": 1e-2, "precision": "float32", "device": "cpu"},
        "evaluation": {"sources": {"held_out": {"source": str(tmp_path / "rows.jsonl")}}},
    }
    train(config, out=tmp_path / "run", show_progress=False)
    before, after = (mmcl.load(tmp_path / name, dtype="float32") for name in ("start", "run"))
    assert after.embedder("image").processor.resize == "patches-8-bilinear"
    learned = dict(after.towers.named_parameters())
    assert not [name for name, weight in before.towers.named_parameters() if torch.equal(weight, learned[name])]


@pytest.mark.parametrize("change", [{"max_num_patches": 17}, {"do_resize": False}])
def test_a_processor_that_cannot_be_followed_is_refused_in_one_line(tmp_path, change):
    naflex(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(MmclError, match="the square of a whole number, such as 256") as caught:
        mmcl.load(tmp_path)
    assert "\n" not in str(caught.value)
