from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import mmcl
from mmcl.config.data import ImageConfig
from mmcl.config.model import HeadConfig, ModelConfig
from mmcl.encoding import Encoder
from mmcl.formats.start import start_from
from mmcl.formats.towers.image import build_image_tower
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.towers import Conventions, Towers
from mmcl.runtime.errors import MmclError

from .conftest import CAPTIONS, TINY, open_clip_folder, sample_images
from .transformers.test_clip import clip_folder, siglip_folder

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
        ({}, {"resize": "pad"}, r"data\.image\.resize is pad"),
    ],
)
def test_what_a_full_model_has_already_is_refused_in_one_line(folder, sections, image, message):
    with pytest.raises(MmclError, match=message) as caught:
        start_from(ModelConfig(name=str(folder), **sections), ImageConfig(**image), BOTH)
    assert "\n" not in str(caught.value)


def test_the_attention_pooling_of_a_resnet_is_interpolated_too(tmp_path):
    resnet = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    open_clip_folder(tmp_path / "resnet", {**TINY, "vision_cfg": resnet, "embed_dim": 20})
    start = start_from(ModelConfig(name=str(tmp_path / "resnet")), ImageConfig(size=96), BOTH)
    assert len(start.image().tower.net.attnpool.positional_embedding) == 3 * 3 + 1
    encoder = Encoder(start).eval()
    again = mmcl.load(encoder.save(tmp_path / "ours"))
    np.testing.assert_array_equal(again.encode(sample_images()), encoder.encode(sample_images()))


def test_an_open_clip_model_starts_at_another_image_size_as_open_clip_opens_it(folder, tmp_path, caplog):
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", force_image_size=48)
    with torch.no_grad():
        pixels = torch.stack([transform(image) for image in sample_images()])
        expected = model.eval().encode_image(pixels, normalize=True).numpy()
    with caplog.at_level("INFO", logger="mmcl"):
        encoder = Encoder(start_from(ModelConfig(name=str(folder)), ImageConfig(size=48), BOTH)).eval()
    assert [record.message for record in caplog.records if "pixels from now on" in record.message] == [
        f"'{folder}' takes images of 48 pixels from now on, rather than 32: positional_embedding interpolated"
    ]
    encoder.set_compute("float32")
    np.testing.assert_allclose(encoder.encode(sample_images()), expected, atol=1e-5)
    encoder.save(tmp_path / "ours")
    again = mmcl.load(tmp_path / "ours", dtype="float32")
    assert again.image_size == 48
    np.testing.assert_array_equal(again.encode(sample_images()), encoder.encode(sample_images()))


@pytest.mark.parametrize("make", [clip_folder, siglip_folder])
def test_a_transformers_model_starts_at_another_image_size_with_its_table_interpolated(make, tmp_path):
    """The vectors are those of the library's model with the table that open_clip's function gives."""
    from open_clip.model import resize_pos_embed

    model, _, _ = make(tmp_path / "theirs")
    encoder = Encoder(start_from(ModelConfig(name=str(tmp_path / "theirs")), ImageConfig(size=48), BOTH)).eval()
    encoder.set_compute("float32")
    embeddings = model.vision_model.embeddings
    table, classes = embeddings.position_embedding.weight.detach(), int(make is clip_folder)
    state = {"visual.positional_embedding": table if classes else torch.cat([table[:1], table])}
    resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=(6, 6))))
    fitted = state["visual.positional_embedding"][1 - classes :]
    embeddings.position_embedding = nn.Embedding.from_pretrained(fitted)
    embeddings.position_ids = torch.arange(len(fitted))[None]
    embeddings.image_size = 48
    tower, processor = encoder.embedder("image").tower, encoder.embedder("image").processor
    pixels = torch.stack([torch.from_numpy(processor.prepare(image).pixels.copy()) for image in sample_images()])
    normal = (pixels.permute(0, 3, 1, 2) / 255 - tower.mean) / tower.std
    with torch.no_grad():
        expected = model.get_image_features(pixel_values=normal).pooler_output
    np.testing.assert_allclose(encoder.encode(sample_images()), nn.functional.normalize(expected, dim=1), atol=1e-5)
    encoder.save(tmp_path / "ours")
    again = mmcl.load(tmp_path / "ours", dtype="float32")
    np.testing.assert_array_equal(again.encode(sample_images()), encoder.encode(sample_images()))


def test_an_image_encoder_that_was_trained_here_starts_at_another_size(tmp_path):
    config = ModelConfig(dim=8, image={"name": "timm:test_vit"})
    processor, tower = build_image_tower(config.image, ImageConfig(size=32))
    embedder = ImageEmbedder(processor, tower, Head(HeadConfig(), tower.width, 8))
    Encoder(Towers({"image": embedder}, 8)).save(tmp_path / "small")
    start = start_from(ModelConfig(name=str(tmp_path / "small")), ImageConfig(size=64), {"image": "image"})
    encoder = Encoder(start).eval()
    assert encoder.encode(sample_images()).shape == (3, 8)
    again = mmcl.load(encoder.save(tmp_path / "large"))
    np.testing.assert_array_equal(again.encode(sample_images()), encoder.encode(sample_images()))
    same = dict(tower.named_parameters())
    table = "net.pos_embed"
    for name, weight in start.image().tower.named_parameters():
        assert torch.equal(weight, same[name]) == (name != table)


def test_a_size_that_a_network_cannot_read_is_refused_in_one_line(tmp_path):
    config = ModelConfig(dim=8, image={"name": "timm:test_vit"})
    processor, tower = build_image_tower(config.image, ImageConfig(size=32))
    head = Head(HeadConfig(), tower.width, 8)
    Encoder(Towers({"image": ImageEmbedder(processor, tower, head)}, 8)).save(tmp_path / "model")
    with pytest.raises(MmclError, match=r"data\.image\.size is 40, but .* takes 32 and cannot be changed") as caught:
        start_from(ModelConfig(name=str(tmp_path / "model")), ImageConfig(size=40), {"image": "image"})
    assert "\n" not in str(caught.value)
