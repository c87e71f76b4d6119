"""Models of texts and of images small enough to encode by the dozen."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

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

COLOURS = ["red", "blue", "green", "grey", "black"]
THINGS = ["dog", "car", "tree", "house", "bird", "boat"]
PLACES = ["on a hill", "by the sea", "in town"]
TEXTS = [f"a {colour} {thing} {place}" for colour, thing, place in itertools.product(COLOURS, THINGS, PLACES)]


def encoder_of(seed=0, images=False):
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(vocab_size=80), 20)
    processor, tower = build_text_tower(TextTowerConfig(layers=1, width=16, heads=2), tokenizer)
    embedders = {"text": TextEmbedder(processor, tower, Head(HeadConfig(), 16, 8))}
    if images:
        settings = ImageTowerConfig(name="timm:resnet10t", args={"channels": [8, 8, 8, 8], "stem_width": 8})
        processor, tower = build_image_tower(settings, ImageConfig(size=32))
        embedders = {"image": ImageEmbedder(processor, tower, Head(HeadConfig(), tower.width, 8))} | embedders
    encoder = Encoder(Towers(embedders, 8, f"tiny{seed}")).eval()
    encoder.set_compute("float32")
    return encoder


@pytest.fixture(scope="session")
def encoder():
    return encoder_of()


@pytest.fixture(scope="session")
def clustered():
    """300 vectors about 12 centres, of many lengths, with some exact copies."""
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(12, 16))
    vectors = centres[rng.integers(0, 12, 300)] + rng.normal(size=(300, 16)) * rng.uniform(0.02, 0.6, (300, 1))
    vectors[[7, 90]] = vectors[[200, 201]]
    return (vectors * rng.uniform(0.1, 9.0, (300, 1))).astype("float32")


@pytest.fixture(scope="session")
def cosines(clustered):
    unit = clustered.astype("float64")
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return unit @ unit.T
