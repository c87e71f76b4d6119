"""RankMe and LiDAR of a model's images."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from torch import nn

from mmcl.config.model import HeadConfig
from mmcl.data.processors.image import ImageProcessor
from mmcl.data.sources import open_source
from mmcl.encoding.encoder import Encoder
from mmcl.evaluation.metrics.rank import lidar, rank_me
from mmcl.evaluation.tasks.augmented import augmented_vectors
from mmcl.evaluation.tasks.rows import diagnostics_of_rows
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.image.tower import ImageTower
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError


@pytest.fixture(scope="module")
def encoder():
    """Its vectors are the pixels of what it is given, pooled and not of unit length."""
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    processor = ImageProcessor(16, "crop", mean=[0.5] * 3, std=[0.5] * 3)
    head = Head(HeadConfig(kind="none"), 12, 12)
    tower = ImageTower(net, {"name": "tiny"}, processor)
    return Encoder(Towers({"image": ImageEmbedder(processor, tower, head)}, 12, "tiny")).eval()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Twenty-four images of noise on a colour, one of which is none."""
    folder, random = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    lines = []
    for number in range(24):
        noise = random.normal(0, 30, (16, 16, 3)) + random.integers(40, 200, 3)
        Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        lines.append({"image": f"{number}.png"})
    (folder / "5.png").write_bytes(b"no image")
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return open_source(folder / "rows.jsonl")


def test_views_differ_and_are_drawn_again_alike(encoder, rows, caplog):
    views = augmented_vectors(encoder, rows, "image", 3)
    assert views.shape == (23, 3, 12)
    assert (np.abs(views[:, 0] - views[:, 1]).max(1) > 0).all()
    assert np.abs(np.linalg.norm(views, axis=2) - 1).min() > 1e-3
    np.testing.assert_array_equal(views, augmented_vectors(encoder, rows, "image", 3))
    assert augmented_vectors(encoder, rows, "image", 2, images=4).shape[1:] == (2, 12)
    assert "1 of 24 rows left out" in caplog.text
    with pytest.raises(MmclError, match="every row has an unreadable image"):
        augmented_vectors(encoder, rows.select([5, 5, 5]), "image", 2, images=2)


def test_diagnostics_of_images_have_both_ranks(encoder, rows):
    found = diagnostics_of_rows(encoder, rows, text=None, views=4)
    readable = [number for number in range(24) if number != 5]
    vectors = encoder.encode(rows.images("image", readable), normalize=False)
    assert found.rank_me == pytest.approx(rank_me(vectors))
    assert found.lidar == pytest.approx(lidar(augmented_vectors(encoder, rows, "image", 4)))
    assert found.to_dict()["lidar"] == found.lidar
    assert diagnostics_of_rows(encoder, rows, text=None).lidar is None
    with pytest.raises(MmclError, match="at least two views"):
        diagnostics_of_rows(encoder, rows, text=None, views=1)
