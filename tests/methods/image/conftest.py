from __future__ import annotations

import pytest
import torch

from mmcl.config.data import AugmentationConfig
from mmcl.config.model import HeadConfig
from mmcl.data.batches.batch import Batch
from mmcl.data.processors.image import ImageProcessor
from mmcl.methods import Context
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.towers import Towers

from .settings import SETTINGS, Tower


@pytest.fixture
def make():
    def make(kind, **changes):
        torch.manual_seed(0)
        towers = Towers(
            {
                "image": ImageEmbedder(
                    ImageProcessor(8, "crop", [0.5] * 3, [0.5] * 3), Tower(), Head(HeadConfig(kind="none"), 6, 6)
                )
            },
            6,
        )
        augmentation = AugmentationConfig(crop_scale=(0.3, 1.0), flip=0.5, brightness=0.4, greyscale=0.2)
        config = SETTINGS[kind].model_copy(update=changes)
        return kind(config, towers, Context({"image": "image"}, 6, augmentation=augmentation)).train()

    return make


@pytest.fixture
def batch():
    torch.manual_seed(1)
    rows = torch.arange(6)
    pixels = torch.randint(0, 256, (6, 16, 16, 3), dtype=torch.uint8)
    inputs = {"image": {"pixels": pixels}, "label": {"labels": torch.tensor([7, 8, 7, 7, 9, 8])}}
    return Batch(inputs, rows[:, None], seeds=rows + 50, rows=rows)
