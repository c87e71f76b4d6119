"""A small encoder of texts and images, with prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mmcl.config.data import ImageConfig
from mmcl.config.model import HeadConfig, ImageTowerConfig, TextTowerConfig, TokenizerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.encoding.encoder import Encoder
from mmcl.formats.towers.image import build_image_tower
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.towers import Towers

_SEEN = ["a red dog", "a blue car", "a green tree", "the red car", "two dogs and a tree", "a boat", "find text: other"]


def _tiny(*modalities: str, prompts: dict[str, str] | None = None, seed: int = 0) -> Encoder:
    """An encoder of these modalities, into 8 dimensions, that computes in float32."""
    torch.manual_seed(seed)
    settings = TextTowerConfig(layers=1, width=16, heads=2)
    texts, text = build_text_tower(settings, train_tokenizer(_SEEN, TokenizerConfig(vocab_size=60), 20))
    texts.set_prompts(prompts or {})
    embedders: dict = {"text": TextEmbedder(texts, text, Head(HeadConfig(), 16, 8))}
    if "image" in modalities:
        images, image = build_image_tower(
            ImageTowerConfig(name="timm:resnet10t", args={"channels": [8, 8, 8, 8], "stem_width": 8}),
            ImageConfig(size=32),
        )
        embedders = {"image": ImageEmbedder(images, image, Head(HeadConfig(), image.width, 8))} | embedders
    encoder = Encoder(Towers(embedders, 8, "tiny")).eval()
    encoder.set_compute("float32")
    return encoder


@pytest.fixture(scope="session")
def tiny():
    """Makes an encoder of some modalities."""
    return _tiny


@pytest.fixture
def photo(tmp_path):
    """An image file."""
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    return path
