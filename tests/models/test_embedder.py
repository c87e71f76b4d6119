"""An embedder: parts of it that stay still, and features in the place of inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmcl.config.data import ImageConfig
from mmcl.config.model import HeadConfig, ImageTowerConfig
from mmcl.formats.towers.image import build_image_tower
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder

NET = {"channels": [8, 8, 8, 8], "stem_width": 8}


@pytest.fixture
def make():
    def make(**settings):
        torch.manual_seed(0)
        processor, tower = build_image_tower(ImageTowerConfig(name="timm:resnet10t", args=NET), ImageConfig(size=32))
        return ImageEmbedder(processor, tower, Head(HeadConfig(), tower.width, 6), **settings)

    return make


def test_what_is_kept_still_stays_in_evaluation_mode(make):
    embedder = make()
    layer = next(module for module in embedder.tower.modules() if isinstance(module, nn.BatchNorm2d))
    embedder.keep_in_eval([layer])
    embedder.train()
    assert embedder.training
    assert not layer.training


def test_a_frozen_tower_neither_learns_nor_moves_and_its_head_does(make):
    embedder = make(frozen=True).train()
    before = {name: value.clone() for name, value in embedder.tower.state_dict().items()}
    embedder(pixels=torch.rand(4, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is None for parameter in embedder.tower.parameters())
    assert all(parameter.grad is not None for parameter in embedder.head.parameters())
    assert all(torch.equal(value, before[name]) for name, value in embedder.tower.state_dict().items())


def test_features_computed_earlier_stand_for_the_inputs(make):
    embedder = make().eval()
    pixels = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(embedder(features=embedder.tower(pixels)), embedder(pixels=pixels))


def test_the_processor_is_no_part_of_the_state(make):
    assert {name.split(".")[0] for name in make().state_dict()} == {"tower", "head"}
