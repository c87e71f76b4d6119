"""What does pretraining without labels give a detector and a segmenter, against a random start at equal steps?

python benchmarks/transfer.py                                              about half an hour on two cores
python benchmarks/transfer.py --epochs 1 --steps 60 --test 60 --seeds 1    minutes, to see that it runs

A ResNet-18 learns by SimCLR from the 4,000 training images of the sample `shapes`, without any label, and is exported
to torchvision. torchvision's Faster R-CNN and FCN, both over a feature pyramid, then learn eight shapes from a few of
these images with their boxes and masks, once from that backbone and once from torchvision's initial weights, by equally
many steps over the same batches. Judged on other images: AP of boxes as COCO has it, and mean intersection over union.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torchvision
from measure import report
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.segmentation.fcn import FCN, FCNHead
from torchvision.ops import box_iou
from torchvision.transforms.functional import normalize, pil_to_tensor

import mmcl
from mmcl.data.samples import shapes
from mmcl.formats.export import export
from mmcl.formats.open import open_model

CLASSES = 1 + len(shapes.SHAPES)
SIZE, WIDTH, BATCH = 64, 64, 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IOU_LEVELS = [0.5 + 0.05 * number for number in range(10)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=float, default=10, help="of pretraining")
    parser.add_argument("--steps", type=int, default=300, help="of the detector, and of the segmenter")
    parser.add_argument("--labelled", type=int, default=400, help="images with boxes and masks")
    parser.add_argument("--test", type=int, default=200, help="images to judge on")
    parser.add_argument("--seeds", type=int, default=3, help="of what is not pretrained, and of the batches")
    args = parser.parse_args()
    rows = shapes.rows(splits={"train": shapes.SPLITS["train"], "test": args.test}, annotated=True)
    labelled, test = examples(rows["train"][: args.labelled]), examples(rows["test"])
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        pretrained = load_file(pretrain(rows["train"], args.epochs, Path(folder)) / "model.safetensors")
        seconds = time.perf_counter() - start
    starts = {"random": None, "pretrained": pretrained}
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in starts}
    for seed in range(args.seeds):
        for name, weights in starts.items():
            scores[name].append(
                detection(weights, labelled, test, args.steps, seed)
                | segmentation(weights, labelled, test, args.steps, seed)
            )
    table = [{"start": name, **summary(each)} for name, each in scores.items()]
    sizes = {key: getattr(args, key) for key in ("epochs", "steps", "labelled", "test", "seeds")}
    report(__file__, table, **sizes, batch=BATCH, pretraining_seconds=round(seconds), runs=scores)


def pretrain(rows: list[dict[str, Any]], epochs: float, folder: Path) -> Path:
    """The folder of torchvision's state dict of a ResNet-18 that learned from the images alone."""
    pq.write_table(pa.table({"image": [row["image"] for row in rows]}), folder / "images.parquet")
    config = {
        "name": "shapes",
        "method": {"name": "simclr", "temperature": 0.2, "projector": {"hidden": [512], "dim": 128}},
        "data": {"train": {"source": str(folder / "images.parquet")}, "image": {"size": SIZE}},
        "model": {"dim": 512, "image": {"name": "timm:resnet18", "head": {"kind": "none"}}},
        "augmentation": {
            "crop_scale": [0.4, 1.0], "flip": 0.5, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1,
            "jitter_prob": 0.8, "greyscale": 0.2,
        },
        "training": {"epochs": epochs, "batch_size": 256, "lr": 1e-3, "weight_decay": 0.05},
    }  # fmt: skip
    run = mmcl.train(config, out=folder / "run")
    return export(open_model(run.folder), "torchvision", folder / "torchvision")


def examples(rows: list[dict[str, Any]]) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Images in [0, 1], each with its boxes, their labels and the classes of its pixels."""
    return [
        (
            pil_to_tensor(Image.open(io.BytesIO(row["image"]))) / 255,
            {
                "boxes": torch.tensor(row["boxes"], dtype=torch.float32),
                "labels": torch.tensor([1 + shapes.SHAPES.index(name) for name in row["shapes"]]),
                "mask": torch.tensor(np.array(Image.open(io.BytesIO(row["mask"])))).long(),
            },
        )
        for row in rows
    ]


def pyramid(weights: dict[str, Tensor] | None) -> BackboneWithFPN:
    """The feature pyramid over a ResNet-18 that starts from ``weights``, or as torchvision makes it."""
    net = torchvision.models.resnet18()
    if weights is not None:
        net.load_state_dict(weights, strict=True)
    stages = {f"layer{number}": str(number - 1) for number in range(1, 5)}
    return BackboneWithFPN(net, stages, [64, 128, 256, 512], WIDTH)


def detection(weights: Any, labelled: Any, test: Any, steps: int, seed: int) -> dict[str, float]:
    """AP on ``test`` of a Faster R-CNN, in %."""
    torch.manual_seed(seed)
    anchors = AnchorGenerator(tuple((size,) for size in (8, 16, 32, 64, 128)), ((0.5, 1.0, 2.0),) * 5)
    proposals = {f"rpn_{when}_nms_top_n_{stage}": 200 for when in ("pre", "post") for stage in ("train", "test")}
    model = FasterRCNN(
        pyramid(weights), CLASSES, min_size=SIZE, max_size=SIZE, rpn_anchor_generator=anchors,
        box_batch_size_per_image=64, **proposals,
    )  # fmt: skip
    for images, targets in batches(model, labelled, steps, seed):
        losses = model(images, [{key: target[key] for key in ("boxes", "labels")} for target in targets])
        sum(losses.values()).backward()
    with torch.no_grad():
        found = [model.eval()([image])[0] for image, _ in test]
    truths = [target for _, target in test]
    precisions = [average_precision(found, truths, level) for level in IOU_LEVELS]
    return {"AP": 100 * statistics.mean(precisions), "AP50": 100 * precisions[0]}


class Finest(nn.Module):
    """The finest level of a pyramid, as torchvision's segmentation takes its backbones."""

    def __init__(self, levels: BackboneWithFPN) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.levels(images)["0"]}


def segmentation(weights: Any, labelled: Any, test: Any, steps: int, seed: int) -> dict[str, float]:
    """Mean intersection over union on ``test`` of an FCN, in %."""
    torch.manual_seed(seed)
    model = FCN(Finest(pyramid(weights)), FCNHead(WIDTH, CLASSES))
    for images, targets in batches(model, labelled, steps, seed):
        logits = model(normalize(torch.stack(images), MEAN, STD))["out"]
        nn.functional.cross_entropy(logits, torch.stack([target["mask"] for target in targets])).backward()
    both, either = torch.zeros(CLASSES), torch.zeros(CLASSES)
    model.eval()
    for image, target in test:
        with torch.no_grad():
            classes = model(normalize(image[None], MEAN, STD))["out"].argmax(1)[0]
        for label in range(CLASSES):
            ours, theirs = classes == label, target["mask"] == label
            both[label] += (ours & theirs).sum()
            either[label] += (ours | theirs).sum()
    return {"mean IoU": 100 * (both / either).mean().item()}


def batches(model: nn.Module, labelled: Any, steps: int, seed: int) -> Iterator[Any]:
    """Batches that the caller takes a gradient of; then ``model`` is updated, at a rate that ends at zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=steps, pct_start=0.1)
    order = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        chosen = torch.randperm(len(labelled), generator=order)[:BATCH]
        images, targets = zip(*(labelled[number] for number in chosen), strict=True)
        yield list(images), list(targets)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def average_precision(found: list[dict[str, Tensor]], truths: list[dict[str, Tensor]], level: float) -> float:
    """Mean over the classes of the area below precision over recall; a box is right if it is the first, by score, whose
    intersection over union with a box of its class is at least ``level``."""
    areas = []
    for label in range(1, CLASSES):
        hits: list[tuple[float, bool]] = []
        total = 0
        for boxes, truth in zip(found, truths, strict=True):
            mine, wanted = boxes["labels"] == label, truth["boxes"][truth["labels"] == label]
            free = torch.ones(len(wanted), dtype=torch.bool)
            total += len(wanted)
            for score, overlaps in zip(boxes["scores"][mine], box_iou(boxes["boxes"][mine], wanted), strict=True):
                best = (overlaps * free).argmax() if free.any() else None
                right = best is not None and bool(overlaps[best] >= level)
                if right:
                    free[best] = False
                hits.append((score.item(), right))
        right = np.cumsum([hit for _, hit in sorted(hits, key=lambda hit: -hit[0])]) if hits else np.zeros(1)
        precision = np.maximum.accumulate((right / np.arange(1, len(right) + 1))[::-1])[::-1]
        areas.append(float(np.sum(np.diff(right, prepend=0) / total * precision)))
    return statistics.mean(areas)


def summary(scores: list[dict[str, float]]) -> dict[str, str]:
    """Mean and range over the seeds."""
    values = {name: [each[name] for each in scores] for name in scores[0]}
    return {name: f"{statistics.mean(of):.1f} ({min(of):.1f} – {max(of):.1f})" for name, of in values.items()}


if __name__ == "__main__":
    main()
