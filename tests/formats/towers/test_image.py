from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import mmcl
from mmcl.config.data import ImageConfig
from mmcl.config.model import HeadConfig, ImageTowerConfig, TextTowerConfig
from mmcl.encoding.encoder import Encoder
from mmcl.formats.towers.image import build_image_tower
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError

from ..transformers.test_clip import TEXT, VISION, clip_folder, siglip_folder

transformers = pytest.importorskip("transformers")
SMALL = {**VISION, "image_size": 32, "patch_size": 8}
PIXELS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def write(folder, kind):
    """A folder with a tiny random vision model of ``kind``, and the model."""
    torch.manual_seed(0)
    if kind == "clip":
        return clip_folder(folder)[0].vision_model
    if kind == "siglip":
        return siglip_folder(folder)[0].vision_model
    model = {
        "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**SMALL)),
        "vit-classifier": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL)),
        "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SMALL)),
        "resnet": lambda: transformers.ResNetModel(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        ),
    }[kind]()
    model.save_pretrained(folder)
    settings = {"size": {"height": 32, "width": 32}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    transformers.ViTImageProcessorPil(**settings).save_pretrained(folder)
    return model.eval()


def build(folder, size=32, **settings):
    return build_image_tower(ImageTowerConfig(name=f"transformers:{folder}", **settings), ImageConfig(size=size))


def own_features(kind, model, tower, pixels):
    normalized = (pixels - tower.mean) / tower.std
    if kind == "vit-classifier":  # its pooler was never trained: the class token's state
        return model.vit(normalized).last_hidden_state[:, 0]
    return model(normalized).pooler_output.flatten(1)


@pytest.mark.parametrize("kind", ["vit", "vit-classifier", "dinov2", "resnet", "clip", "siglip"])
@torch.no_grad()
def test_transformers_vision_models_give_the_vector_they_are_known_for(tmp_path, kind):
    model = write(tmp_path / "theirs", kind)
    processor, tower = build(tmp_path / "theirs", pretrained=True)
    tower.eval()
    torch.testing.assert_close(tower(PIXELS), own_features(kind, model, tower, PIXELS), atol=1e-5, rtol=1e-5)
    if kind not in ("clip", "siglip"):
        assert tower.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    encoder = Encoder(
        Towers({"image": ImageEmbedder(processor, tower, Head(HeadConfig(), tower.width, 12))}, 12)
    ).eval()
    encoder.save(tmp_path / "ours")
    again = mmcl.load(tmp_path / "ours").embedder("image").tower
    torch.testing.assert_close(again(PIXELS), tower(PIXELS))


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip", "siglip"])
@torch.no_grad()
def test_positions_are_interpolated_to_another_image_size(tmp_path, kind):
    model = write(tmp_path / "theirs", kind)
    tower = build(tmp_path / "theirs", size=48, pretrained=True)[1].eval()
    larger = torch.nn.functional.interpolate(PIXELS, 48)
    options = {} if kind == "dinov2" else {"interpolate_pos_encoding": True}
    expected = model((larger - tower.mean) / tower.std, **options).pooler_output
    torch.testing.assert_close(tower(larger), expected, atol=1e-5, rtol=1e-5)
    _, fresh = build(tmp_path / "theirs", size=48)
    assert fresh.net.config.image_size == 48


def test_what_is_no_vision_model_is_refused(tmp_path):
    write(tmp_path / "theirs", "vit")
    transformers.BertModel(transformers.BertConfig(**TEXT, vocab_size=50)).save_pretrained(tmp_path / "bert")
    for name, settings, message in (
        (tmp_path / "bert", {}, "not images"),
        (tmp_path / "nowhere", {}, "cannot be opened"),
        (tmp_path / "theirs", {"pretrained": "tag"}, "true or false"),
        (tmp_path / "theirs", {"args": {"depth": 3}}, "remove depth"),
    ):
        with pytest.raises(MmclError, match=message) as caught:
            build(name, **settings)
        assert "\n" not in str(caught.value)


def longest(shapes):
    """The longest sequence among (N, L, D) states; what is pooled already has two dimensions."""
    return max(shape[1] for shape in shapes if len(shape) == 3)


def in_the_middle(net):
    """A layer that is within some block of ``net``."""
    norms = [module for module in net.modules() if isinstance(module, torch.nn.LayerNorm)]
    return norms[len(norms) // 2]


def test_weights_in_pytorchs_own_file_are_read_and_missing_ones_are_named(tmp_path):
    write(tmp_path / "theirs", "vit")
    expected = build(tmp_path / "theirs", pretrained=True)[1](PIXELS)
    weights = tmp_path / "theirs" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    assert torch.equal(build(tmp_path / "theirs", pretrained=True)[1](PIXELS), expected)
    weights.with_name("pytorch_model.bin").rename(weights.with_name("tf_model.h5"))
    with pytest.raises(MmclError, match=r"weights are missing.*TensorFlow"):
        build(tmp_path / "theirs", pretrained=True)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", ["open_clip:tiny-ViT", "timm:vit", "timm:eva", "vit", "dinov2", "clip", "siglip"])
def test_patches_are_dropped_in_training_only(tmp_path, name):
    args, size = {}, 32
    if name.startswith("timm:"):
        names = {"timm:vit": "timm:test_vit", "timm:eva": "timm:eva02_tiny_patch14_224"}
        args, name, size = ({"img_size": 28}, names[name], 28) if name == "timm:eva" else ({}, names[name], 32)
    elif ":" not in name:
        write(tmp_path / "theirs", name)
        name = f"transformers:{tmp_path / 'theirs'}"
    config = ImageTowerConfig(name=name, args=args, patch_dropout=0.5)
    _, tower = build_image_tower(config, ImageConfig(size=size))
    pixels = torch.nn.functional.interpolate(PIXELS, size)
    lengths = []
    for module in tower.net.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape))
    tower.eval()(pixels)
    unlimited = longest(lengths)
    assert torch.equal(tower(pixels), tower(pixels))
    lengths.clear()
    tower.train()(pixels)
    patches = (size // (14 if size == 28 else 16 if "test_vit" in name else 8)) ** 2
    assert longest(lengths[1:]) == unlimited - patches // 2
    assert not torch.equal(tower(pixels), tower(pixels))


def test_networks_without_patches_or_checkpointing_say_so(tmp_path):
    write(tmp_path / "theirs", "resnet")
    for name, settings, message in (
        ("timm:resnet10t", {"patch_dropout": 0.5}, "no patches"),
        ("open_clip:RN50", {"patch_dropout": 0.5}, "no patches"),
        (f"transformers:{tmp_path / 'theirs'}", {"patch_dropout": 0.5}, "no patches"),
        ("open_clip:RN50", {"checkpointing": True}, "does not support it"),
        ("timm:dla34", {"checkpointing": True}, "does not support it"),
        (f"transformers:{tmp_path / 'theirs'}", {"checkpointing": True}, "does not support it"),
    ):
        with pytest.raises(MmclError, match=message):
            build_image_tower(ImageTowerConfig(name=name, **settings), ImageConfig(size=32))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", ["open_clip:tiny-ViT", "timm:test_vit", "vit", "clip"])
def test_checkpointing_changes_memory_and_not_the_gradient(tmp_path, name):
    if ":" not in name:
        write(tmp_path / "theirs", name)
        name = f"transformers:{tmp_path / 'theirs'}"

    def gradient(checkpointing):
        torch.manual_seed(0)
        _, tower = build_image_tower(ImageTowerConfig(name=name, checkpointing=checkpointing), ImageConfig(size=32))
        calls = []
        in_the_middle(tower.net).register_forward_pre_hook(lambda *_: calls.append(1))
        tower.train()(PIXELS).square().sum().backward()
        return [p.grad for p in tower.parameters() if p.grad is not None], len(calls)

    plain, once = gradient(False)
    recomputed, twice = gradient(True)
    assert twice > once
    for ours, theirs in zip(recomputed, plain, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("tiny")
def test_checkpointing_of_text_towers():
    for name in ("open_clip:tiny-ViT", "sample:minilm"):
        settings = TextTowerConfig(name=name, checkpointing=True, pretrained=False)
        processor, tower = build_text_tower(settings)
        tower.train()
        calls = []
        in_the_middle(tower.net).register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        tower(**processor.collate(processor.tokenize(["a dog"])[0])).sum().backward()
        assert len(calls) == 2
