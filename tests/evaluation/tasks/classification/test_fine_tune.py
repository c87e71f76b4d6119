"""A whole tower fine-tuned on a share of the labels."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mmcl.config.model import HeadConfig
from mmcl.data.processors.image import ImageProcessor
from mmcl.data.sources import open_source
from mmcl.encoding.encoder import Encoder
from mmcl.evaluation.metrics.logistic import Linear, Standardised
from mmcl.evaluation.tasks.classification.fine_tune import Classifier, fine_tune, fine_tuning_of_rows
from mmcl.evaluation.tasks.classification.linear_probe import Probe
from mmcl.evaluation.tasks.classification.of_rows import few_shot_of_rows
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.image.tower import ImageTower
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError


@pytest.fixture
def encoder():
    """A small network with random weights, frozen, which tells little of stripes."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 5, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    processor = ImageProcessor(16, "crop", mean=[0.5] * 3, std=[0.5] * 3)
    tower, head = ImageTower(net, {"name": "tiny"}, processor), Head(HeadConfig(kind="none"), 8, 8)
    return Encoder(Towers({"image": ImageEmbedder(processor, tower, head, frozen=True)}, 8, "tiny")).eval()


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Faint stripes that go across or down, with a row whose image cannot be read and one without a label."""
    folder, random = tmp_path_factory.mktemp("stripes"), np.random.default_rng(0)
    for part, count in (("train", 80), ("test", 60)):
        lines = []
        for number in range(count):
            stripes = 30 * np.sign(np.sin(np.arange(16) * 2 + random.uniform(0, 6)))[:, None] * np.ones((16, 16))
            pixels = 128 + (stripes if number % 2 else stripes.T)[..., None] + random.normal(0, 90, (16, 16, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{part}{number}.png")
            label = None if (part, number) == ("train", 3) else ("down", "across")[number % 2]
            lines.append(json.dumps({"image": f"{part}{number}.png", "label": label}) + "\n")
        (folder / f"{part}.jsonl").write_text("".join(lines))
    (folder / "test0.png").write_bytes(b"no image")
    return [open_source(folder / f"{part}.jsonl") for part in ("train", "test")]


def test_a_tuned_tower_beats_the_probe_of_the_same_labels_and_the_model_stays(encoder, tables):
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    found = fine_tuning_of_rows(encoder, *tables, fractions=[0.5], seeds=2, bootstrap=50)[0]
    probe = few_shot_of_rows(encoder, *tables, fractions=[0.5], seeds=2, bootstrap=50)[0]
    assert (found.train, found.images, len(found.draws)) == (probe.train, 59, 2)
    assert found.top1 > probe.top1 + 0.05
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    again = fine_tuning_of_rows(encoder, *tables, fractions=[0.5], seeds=1, bootstrap=50)[0]
    assert again.draws == found.draws[:1]


def test_it_starts_from_the_probe(encoder):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    encoder.set_compute("float32")
    vectors = encoder.encode(list(pixels), normalize=False)
    features, random = Standardised.of(vectors, torch.device("cpu")), torch.Generator().manual_seed(0)
    linear = Linear(torch.randn(8, 3, generator=random), torch.randn(3, generator=random))
    model = Classifier(encoder.towers.image(), *Probe(features, linear, 1.0, {}).of_raw_features()).eval()
    with torch.no_grad():
        logits = model(pixels=torch.from_numpy(pixels))
    torch.testing.assert_close(logits, linear(features.values), rtol=1e-3, atol=1e-3)


def test_few_images_are_one_batch(encoder):
    model = Classifier(encoder.towers.image(), torch.zeros(8, 2), torch.zeros(2))
    fine_tune(model, torch.zeros(3, 16, 16, 3, dtype=torch.uint8), torch.tensor([0, 1, 1]), epochs=1, seed=0)
    assert model.bias[1] > model.bias[0]


def test_mistakes_are_named(encoder, tables):
    with pytest.raises(MmclError, match="the fraction 2 is no share of the labels"):
        fine_tuning_of_rows(encoder, *tables, fractions=[2])
