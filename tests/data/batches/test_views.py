"""Views of a batch: how draws are numbered, and in what order their inputs stand."""

from __future__ import annotations

import pytest
import torch

from mmcl.config.data import AugmentationConfig
from mmcl.data.batches.batch import Batch
from mmcl.data.batches.views import Augment, View, draw_numbers, make_views


def noted(inputs, seeds, draw, size):
    """Seed and number of the draw in the place of the inputs."""
    return {"pixels": torch.stack([seeds, torch.full_like(seeds, draw), torch.full_like(seeds, size or 0)], dim=1)}


@pytest.fixture
def batch():
    rows = torch.arange(3)
    return Batch({"image": {"pixels": rows}, "text": {"input_ids": rows[:, None]}}, rows[:, None], rows + 10, rows)


def test_views_of_a_column_share_its_draws_in_their_order():
    views = {
        "global": View("image", "image", count=2),
        "text": View("text", "text"),
        "local": View("image", "image", count=3),
        "masked": View("text", "text", noted, draw_of="text"),
        "again": View("text", "text"),
    }
    numbers = {name: list(range_) for name, range_ in draw_numbers(views).items()}
    assert numbers == {"global": [0, 1], "text": [0], "local": [2, 3, 4], "masked": [0], "again": [1]}


def test_several_draws_stand_row_by_row_and_nothing_changes_out_of_training(batch):
    views = {"one": View("image", "image", noted), "two": View("image", "image", noted, size=8, count=2)}
    made = make_views(views, batch, change=True)
    assert made["one"]["pixels"].tolist() == [[10, 0, 0], [11, 0, 0], [12, 0, 0]]
    expected = [[seed, draw, 8] for seed in (10, 11, 12) for draw in (1, 2)]
    assert made["two"]["pixels"].tolist() == expected
    assert make_views(views, batch, change=False)["one"] is batch.inputs["image"]


def test_a_view_has_the_size_of_its_augmentation_unless_it_has_one_of_its_own(batch):
    batch.inputs["image"] = {"pixels": torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)}
    augment = Augment(AugmentationConfig(size=24, crop_scale=(0.2, 1.0)))
    views = {"global": View("image", "image", augment, count=2), "local": View("image", "image", augment, size=8)}
    made = make_views(views, batch, change=True)
    assert made["global"]["pixels"].shape == (6, 3, 24, 24)
    assert made["local"]["pixels"].shape == (3, 3, 8, 8)
    assert make_views(views, batch, change=False)["local"] is batch.inputs["image"]  # as ever in use


def test_a_view_takes_the_draw_that_the_host_made_for_it_and_features_as_they_are(batch):
    batch.draws["text"] = [{"input_ids": torch.arange(3)[:, None] + 7}]
    views = {"first": View("text", "text"), "second": View("text", "text")}
    made = make_views(views, batch, change=True)
    assert made["first"] is batch.inputs["text"]
    assert made["second"] is batch.draws["text"][0]
    batch.inputs["image"] = {"features": torch.zeros(3, 2)}
    batch.extra["mined"] = {"input_ids": torch.zeros(6, 1)}
    made = make_views({"one": View("image", "image", noted)}, batch, change=True)
    assert made == {"one": batch.inputs["image"], "mined": batch.extra["mined"]}
