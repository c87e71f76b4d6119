"""State dicts of torchvision and timm, written and read."""

from __future__ import annotations

import json
import re

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from mmcl.cli.app import app
from mmcl.config.data import ImageConfig
from mmcl.config.model import HeadConfig, ImageTowerConfig
from mmcl.formats.export import cannot_export, export
from mmcl.formats.folder import save
from mmcl.formats.towers.image import build_image_tower
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError


def trained(name, size=32, head="none", **settings):
    """A model whose statistics and gains are those of no fresh network."""
    torch.manual_seed(0)
    processor, tower = build_image_tower(ImageTowerConfig(name=name, **settings), ImageConfig(size=size))
    with torch.no_grad():
        for weight in tower.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
        for key, buffer in tower.net.named_buffers():
            if key.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn_like(buffer))
    dim = tower.width if head == "none" else 8
    return Towers(
        {"image": ImageEmbedder(processor, tower, Head(HeadConfig(kind=head), tower.width, dim))}, dim, "ours"
    )


def opened_by_its_readme(folder, monkeypatch):
    """The network that the lines of the model card make."""
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)
    names = {}
    exec(code, names)
    return names["net"].eval()


def features_of(net, towers, folder):
    """Features by another library's network, of pixels normalised as its ``config.json`` says; and by our tower."""
    about = json.loads((folder / "config.json").read_text())
    mean, std = (torch.tensor(about["pretrained_cfg"][key]).view(3, 1, 1) for key in ("mean", "std"))
    pixels = torch.rand(3, *about["pretrained_cfg"]["input_size"], generator=torch.Generator().manual_seed(1))
    tower = towers.image().tower.eval()
    assert about["num_features"] == tower.width
    with torch.no_grad():
        return net((pixels - mean) / std), tower(pixels)


@pytest.mark.parametrize("name", ["timm:resnet18", "timm:resnet50", "timm:densenet121", "cifar:resnet18"])
def test_torchvision_loads_the_tower_strictly_with_equal_features(tmp_path, monkeypatch, name):
    towers = trained(name)
    folder = export(towers, "torchvision", tmp_path / "theirs")
    net = opened_by_its_readme(folder, monkeypatch)
    if name.startswith("timm:"):
        net = getattr(torchvision.models, name.removeprefix("timm:"))()
        net.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    classifier = "classifier" if "densenet" in name else "fc"
    assert not any(weight.any() for weight in getattr(net, classifier).parameters())
    setattr(net, classifier, torch.nn.Identity())
    theirs, ours = features_of(net.eval(), towers, folder)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "args"),
    [
        ("timm:resnet18", 32, {}),
        ("timm:resnet10t", 32, {"channels": [8, 8, 16, 24], "stem_width": 8}),
        ("timm:test_vit", 48, {}),
        ("timm:swin_tiny_patch4_window7_224", 64, {"depths": [1] * 4, "embed_dim": 24, "num_heads": [1] * 4}),
        ("cifar:resnet18", 32, {}),
    ],
)
def test_timm_loads_the_tower_strictly_with_equal_features(tmp_path, monkeypatch, name, size, args):
    towers = trained(name, size=size, args=args)
    folder = export(towers, "timm", tmp_path / "theirs")
    nets = [opened_by_its_readme(folder, monkeypatch)]
    if name.startswith("timm:") and "swin" not in name:
        nets.append(timm.create_model(f"local-dir:{folder}", pretrained=True).eval())
    if name == "timm:resnet18":
        net = timm.create_model("resnet18", pretrained=False, num_classes=0).eval()
        net.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
        nets.append(net)
    for net in nets:
        theirs, ours = features_of(net, towers, folder)
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("tiny")
def test_what_no_library_builds_is_refused_with_the_reason(tmp_path):
    for towers, library, message in (
        (trained("timm:resnet10t"), "torchvision", "no network like timm's resnet10t"),
        (trained("timm:test_vit"), "torchvision", "no network like timm's test_vit"),
        (trained("timm:resnet18", args={"output_stride": 8}), "torchvision", "resnet18 has no output_stride"),
        (trained("cifar:resnet10"), "timm", "no network like cifar:resnet10 of width 64"),
        (trained("cifar:resnet18", args={"width": 8}), "torchvision", "no network like cifar:resnet18 of width 8"),
        (trained("open_clip:tiny-RN"), "timm", "takes towers of the names timm"),
    ):
        assert message in cannot_export(towers, library)
    assert cannot_export(trained("timm:resnet18", args={"drop_path_rate": 0.1}), "torchvision") is None


def test_a_head_is_left_out_and_the_command_says_so(tmp_path, caplog):
    save(trained("timm:resnet18", head="linear"), tmp_path / "ours")
    command = ["export", str(tmp_path / "ours"), "--to", "torchvision", "--out", str(tmp_path / "theirs")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0
    assert "README.md" in result.stdout
    assert "no place for the image head of 'ours'" in caplog.text


@pytest.mark.parametrize("kind", ["file", "folder", "pth"])
def test_a_tower_starts_from_weights_of_torchvision(tmp_path, kind):
    torch.manual_seed(2)
    theirs = torchvision.models.resnet18()
    source = tmp_path / ("weights.pth" if kind == "pth" else "model.safetensors")
    torch.save(theirs.state_dict(), source) if kind == "pth" else save_file(theirs.state_dict(), source)
    pretrained = str(tmp_path if kind == "folder" else source)
    tower = build_image_tower(ImageTowerConfig(name="timm:resnet18", pretrained=pretrained), ImageConfig(size=32))[1]
    theirs.fc = torch.nn.Identity()
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs.eval()((pixels - tower.mean) / tower.std)
        torch.testing.assert_close(tower.eval()(pixels), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "library", "size"), [("cifar:resnet18", "torchvision", 32), ("timm:test_vit", "timm", 48)]
)
def test_a_training_starts_where_an_exported_backbone_ended(tmp_path, name, library, size):
    tower = trained(name, size=size).image().tower
    folder = export(trained(name, size=size), library, tmp_path / "theirs")
    again = build_image_tower(ImageTowerConfig(name=name, pretrained=str(folder)), ImageConfig(size=size))[1]
    assert again.spec == tower.spec
    for (key, weight), other in zip(again.state_dict().items(), tower.state_dict().values(), strict=True):
        assert torch.equal(weight, other), key


@torch.no_grad()
def test_positions_of_timms_weights_are_resampled_to_the_size_of_the_run(tmp_path):
    theirs = timm.create_model("test_vit", num_classes=10)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    config = ImageTowerConfig(name="timm:test_vit", pretrained=str(tmp_path))
    tower = build_image_tower(config, ImageConfig(size=48))[1].eval()
    theirs.reset_classifier(0)
    theirs.set_input_size(img_size=48)
    pixels = torch.rand(2, 3, 48, 48)
    torch.testing.assert_close(tower(pixels), theirs.eval()((pixels - tower.mean) / tower.std), atol=1e-5, rtol=1e-5)


def test_weights_that_do_not_fit_are_named(tmp_path):
    save_file(torchvision.models.resnet18().state_dict(), tmp_path / "r18.safetensors")
    spoiled = {name: tensor.clone() for name, tensor in torchvision.models.resnet18().state_dict().items()}
    spoiled["conv1.weight"][0] = torch.nan
    save_file(spoiled, tmp_path / "nan.safetensors")
    for name, file, message in (
        ("timm:resnet34", "r18", "weights of another network .*layer1.2.conv1.weight"),
        ("cifar:resnet18", "r18", "another network .size mismatch for conv1.weight"),
        ("timm:resnet18", "nan", "'conv1.weight' has 147 values that are NaN"),
        ("timm:resnet18", "none", "there is no file .*a tag belongs to the name"),
    ):
        config = ImageTowerConfig(name=name, pretrained=str(tmp_path / f"{file}.safetensors"))
        with pytest.raises(MmclError, match=message) as caught:
            build_image_tower(config, ImageConfig(size=32))
        assert "\n" not in str(caught.value)
