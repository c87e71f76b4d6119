from __future__ import annotations

import numpy as np
import pytest
from torch import nn

import mmcl
from mmcl.config.data import ImageConfig
from mmcl.config.model import ModelConfig
from mmcl.encoding import Encoder
from mmcl.formats.start import start_from
from mmcl.models.towers import Conventions
from mmcl.runtime.errors import MmclError

from .conftest import CAPTIONS, TINY, open_clip_folder, sample_images

BOTH = {"image": "image", "text": "text"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("start") / "theirs"
    open_clip_folder(path, TINY)
    return path


def test_a_full_model_is_the_start_as_it_is(folder):
    encoder = Encoder(start_from(ModelConfig(name=str(folder)), ImageConfig(), BOTH))
    full = mmcl.load(folder)
    for inputs in (CAPTIONS, sample_images()):
        assert np.array_equal(encoder.encode(inputs), full.encode(inputs))
    assert (encoder.logit_scale, encoder.image_size) == (full.logit_scale, 32)
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_a_model_whose_vectors_are_cut_is_trained_in_full(folder, tmp_path):
    encoder = mmcl.load(folder)
    encoder.conventions = Conventions(truncate_dim=8)
    encoder.save(tmp_path / "cut")
    cut, start = mmcl.load(tmp_path / "cut"), start_from(ModelConfig(name=str(tmp_path / "cut")), ImageConfig(), BOTH)
    assert (cut.dim, cut.encode(CAPTIONS).shape[1], start.dim) == (8, 8, encoder.width)


def test_sections_freeze_and_change_what_they_may(folder):
    config = {"frozen": True}, {"max_tokens": 8, "checkpointing": True, "head": {"dropout": 0.3}}
    model = ModelConfig(name=str(folder), image=config[0], text=config[1])
    encoder = start_from(model, ImageConfig(), BOTH)
    image, text = encoder.embedder("image"), encoder.embedder("text")
    assert image.frozen
    assert not any(parameter.requires_grad for parameter in image.parameters())
    assert all(parameter.requires_grad for parameter in text.parameters())
    assert text.tower.net.transformer.grad_checkpointing
    assert len(text.processor.tokenize([CAPTIONS[3]])[0][0]) == 8
    assert next(part.p for part in text.head if isinstance(part, nn.Dropout)) == 0.3
    dropping = ModelConfig(name=str(folder), image={"patch_dropout": 0.5})
    assert start_from(dropping, ImageConfig(), {"image": "image"}).embedder("image").tower.net.patch_dropout.prob == 0.5


@pytest.mark.parametrize(
    ("sections", "image", "message"),
    [
        ({"image": {"name": "timm:resnet50"}}, {}, r"model\.image\.name: .* leave it out"),
        ({"text": {"width": 64, "layers": 2}}, {}, r"model\.text\.layers, model\.text\.width"),
        ({"text": {"head": {"kind": "mlp"}}}, {}, r"model\.text\.head\.kind"),
        ({"text": {"pooling": "mean"}}, {}, "a pooling of its own"),
        ({"text": {"max_tokens": 99}}, {}, "reads at most 20"),
        ({"dim": 512}, {}, "embeds into 24"),
        ({}, {"size": 64}, r"data\.image\.size is 64, but .* takes 32"),
        ({}, {"resize": "pad"}, r"data\.image\.resize is pad"),
    ],
)
def test_what_a_full_model_has_already_is_refused_in_one_line(folder, sections, image, message):
    with pytest.raises(MmclError, match=message) as caught:
        start_from(ModelConfig(name=str(folder), **sections), ImageConfig(**image), BOTH)
    assert "\n" not in str(caught.value)
