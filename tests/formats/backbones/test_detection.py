"""An exported backbone within torchvision's detector."""

from __future__ import annotations

import io
import math

import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.transforms.functional import pil_to_tensor

from mmcl.data.samples import shapes
from mmcl.formats.export import export

from .test_backbones import trained


def test_faster_rcnn_trains_on_the_exported_backbone(tmp_path):
    folder = export(trained("timm:resnet18", size=64), "torchvision", tmp_path / "theirs")
    net = torchvision.models.resnet18()
    net.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    start = net.layer1[0].conv1.weight.detach().clone()
    stages = {f"layer{number}": str(number) for number in range(1, 5)}
    backbone = BackboneWithFPN(net, stages, [64, 128, 256, 512], out_channels=32)
    detector = FasterRCNN(backbone, num_classes=1 + len(shapes.SHAPES), min_size=64, max_size=64).train()
    rows = shapes.rows(0, {"train": 2}, annotated=True)["train"]
    images = [pil_to_tensor(Image.open(io.BytesIO(row["image"]))) / 255 for row in rows]
    targets = [
        {
            "boxes": torch.tensor(row["boxes"], dtype=torch.float32),
            "labels": torch.tensor([1 + shapes.SHAPES.index(each) for each in row["shapes"]]),
        }
        for row in rows
    ]
    losses = detector(images, targets)
    loss = sum(losses.values())
    loss.backward()
    torch.optim.SGD(detector.parameters(), lr=0.01).step()
    assert math.isfinite(loss.item())
    assert not torch.equal(detector.backbone.body.layer1[0].conv1.weight, start)
