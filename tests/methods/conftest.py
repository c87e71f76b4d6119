"""An encoder small enough to be looked through, and batches for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmcl.config.model import HeadConfig
from mmcl.methods import Batch
from mmcl.models.embedder import Embedder
from mmcl.models.encoder import Encoder
from mmcl.models.heads import Head


class Tower(nn.Linear):
    """Four numbers, called pixels or tokens, to six."""

    def __init__(self, modality):
        super().__init__(4, 6)
        self.modality, self.width = modality, 6

    def forward(self, pixels=None, input_ids=None):
        return super().forward((input_ids if pixels is None else pixels).float())


@pytest.fixture
def make_encoder():
    def make(dim=5, logit_scale=None, logit_bias=None):
        encoder = Encoder({m: Embedder(Tower(m), Head(HeadConfig(), 6, dim)) for m in ("image", "text")}, dim)
        encoder.logit_scale, encoder.logit_bias = logit_scale, logit_bias
        return encoder

    torch.manual_seed(0)
    return make


@pytest.fixture
def batch():
    """Eight rows; rows 2 and 5 have the same text. With it the features of a teacher."""
    torch.manual_seed(1)
    ids = torch.arange(8)
    inputs = {"image": {"pixels": torch.randn(8, 4)}, "text": {"input_ids": torch.randn(8, 4)}}
    inputs |= {f"teacher_{role}": {"features": torch.randn(8, 6)} for role in ("image", "text")}
    text_ids = torch.where(ids == 5, 2, ids)
    return Batch(inputs, torch.stack([ids, text_ids], dim=1), seeds=ids, rows=ids)
