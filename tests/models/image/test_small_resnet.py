from __future__ import annotations

import pytest
import timm
import torch
from lightly.models import ResNetGenerator

from mmcl.config.data import ImageConfig
from mmcl.config.model import HeadConfig, ImageTowerConfig
from mmcl.formats.folder import read_folder, save
from mmcl.formats.towers.image import build_image_tower
from mmcl.models.blocks import blocks
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.image.small_resnet import small_resnet
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError

PIXELS = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "width", "theirs"), [("resnet10", 32, "resnet-9"), ("resnet18", 64, "resnet-18")])
def test_features_are_those_of_lightlys_resnets_for_cifar(name, width, theirs):
    torch.manual_seed(0)
    ours, reference = small_resnet(name, width=width).train(), ResNetGenerator(theirs, width=width / 64).train()
    reference.linear = torch.nn.Identity()
    reference.load_state_dict({name.replace("downsample", "shortcut"): t for name, t in ours.state_dict().items()})
    torch.testing.assert_close(ours(PIXELS), reference(PIXELS), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.eval()(PIXELS), reference.eval()(PIXELS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_weights_but_for_the_stem_are_called_and_shaped_as_those_for_imagenet(name):
    ours, theirs = (
        {key: tensor.shape for key, tensor in net.state_dict().items()}
        for net in (small_resnet(name), timm.create_model(name, num_classes=0))
    )
    assert ours.keys() == theirs.keys()
    assert {key for key in ours if ours[key] != theirs[key]} == {"conv1.weight"}


@pytest.mark.parametrize("size", [28, 32, 40])
@torch.no_grad()
def test_a_tower_for_small_images_is_saved_and_opened(tmp_path, size):
    config = ImageTowerConfig(name="cifar:resnet10", args={"width": 8}, checkpointing=True)
    processor, tower = build_image_tower(config, ImageConfig(size=size))
    assert (tower.width, len(blocks(tower.net))) == (64, 4)
    model = Towers({"image": ImageEmbedder(processor, tower, Head(HeadConfig(kind="none"), 64, 64))}, 64).eval()
    pixels = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    again = read_folder(save(model, tmp_path / "model")).eval().image()
    assert torch.equal(again.tower(pixels), tower(pixels))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "cifar:resnet19"}, "did you mean 'resnet1"),
        ({"name": "cifar:resnet18", "args": {"width": 5}}, "width is 5; an even number"),
        ({"name": "cifar:resnet18", "args": {"wdith": 8}}, "wdith"),
        ({"name": "cifar:resnet18", "pretrained": True}, "nobody publishes weights"),
    ],
)
def test_what_is_no_such_resnet_is_refused(settings, message):
    with pytest.raises(MmclError, match=message):
        build_image_tower(ImageTowerConfig(**settings), ImageConfig(size=32))
