"""Tiny models of other libraries' architectures, made anew for each test run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

CAPTIONS = ["two dogs on a beach", "a red bicycle", "", "A Café   at night!! " * 40, "two dogs"]
VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
TINY = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}


def sample_images():
    """Images of several shapes, as the libraries take them."""
    generator = np.random.default_rng(0)
    sides = [(32, 32), (80, 50), (41, 61)]
    return [Image.fromarray(generator.integers(0, 256, (*side, 3), dtype=np.uint8)) for side in sides]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """open_clip's registry with four small models more: a ViT and a ResNet, each with GELU and with QuickGELU."""
    from open_clip import factory

    resnet = {**TINY, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}}
    registry = dict(factory._MODEL_CONFIGS)
    for name, config in {"tiny-ViT": TINY, "tiny-RN": {**resnet, "embed_dim": 20}}.items():
        registry |= {name: config, f"{name}-quickgelu": {**config, "quick_gelu": True}}
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", registry)


def open_clip_folder(folder, config, **preprocessing):
    """Random weights of ``config`` as a folder of open_clip's; the library's own model of it, transform, tokenizer."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    model = kind(**{key: value for key, value in config.items() if key != "custom_text"})
    with torch.no_grad():
        for parameter in model.parameters():  # biases and gains start at 0 and 1, which would hide their loss
            parameter.add_(0.02 * torch.randn_like(parameter))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocessing}))
    return open_library(folder)


def open_library(folder):
    """(model, transform, tokenizer) as open_clip opens a folder."""
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval(), transform, open_clip.get_tokenizer(f"local-dir:{folder}")


@torch.no_grad()
def library_features(model, transform, tokenizer, captions=CAPTIONS):
    """open_clip's own unit-length features of the images and the captions."""
    pixels = torch.stack([transform(image) for image in sample_images()])
    images = model.encode_image(pixels, normalize=True)
    return images.numpy(), model.encode_text(tokenizer(captions), normalize=True).numpy()
