"""Random crops see the original: from tables and from shards, stored or not, by any number of workers and processes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as reference

from mmcl.config import load_config
from mmcl.config.data import AugmentationConfig
from mmcl.data.augment.random_crop import PackedImages
from mmcl.data.batches.batch import MINED, Batch
from mmcl.data.batches.feed import open_feed
from mmcl.data.batches.sampler import Draw
from mmcl.data.batches.table_feed import HardNegatives
from mmcl.data.batches.views import Augment, View, make_views
from mmcl.data.cache.pixels import Pixels, open_pixels
from mmcl.data.images import decode, original, resize
from mmcl.data.sources.tar.write import write_shards
from mmcl.runtime import distributed
from mmcl.training.build import build_method

SIZES = [(16, 16), (40, 20), (20, 40), (12, 9), (24, 24), (100, 17), (18, 30), (16, 16)]  # width, height
CPU = torch.device("cpu")
SMALL = {"hidden": [8], "dim": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    rows = []
    for number in range(24):
        width, height = SIZES[number % len(SIZES)]
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image.save(folder / f"{number:02d}.png")
        rows.append({"id": f"{number:02d}", "image": str(folder / f"{number:02d}.png")})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = [{"__key__": row["id"], "png": Path(row["image"]).read_bytes()} for row in rows]
    write_shards(samples, folder / "shards", per_shard=6)
    return folder


@pytest.fixture
def make(folder, tmp_path, monkeypatch):
    """A feed and its method."""
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "cache"))

    def make(*overrides, source="rows.jsonl", augmented=True):
        vit = {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 1, "img_size": 16, "dynamic_img_size": True}
        config = load_config(
            {
                "method": {"name": "swav", "projector": SMALL, "prototypes": 5, "local_crops": 2, "local_size": 8},
                "data": {"train": {"source": str(folder / source)}, "image": {"size": 16}},
                "model": {
                    "dim": 8,
                    "image": {"name": "timm:vit_tiny_patch16_224", "args": vit, "head": {"kind": "none"}},
                },
                "augmentation": {"crop_scale": [0.3, 1.0], "flip": 0.5, "brightness": 0.2},
                "training": {"batch_size": 8},
            },
            overrides,
        )
        method = build_method(config, tmp_path / "run").train()
        feed = open_feed([config.data.train], method.reading, config, tmp_path, augmented=augmented, device=CPU)
        return feed, method

    return make


def images_of(inputs) -> list[np.ndarray]:
    if "pixels" in inputs:
        return [image.numpy() for image in inputs["pixels"]]
    return [image.numpy() for image in PackedImages(**inputs).images()]


def expected(folder, number: int, stored: int = 24) -> np.ndarray:
    return original(decode(folder / f"{number:02d}.png"), 16, "crop", stored)


def test_a_batch_holds_the_originals_in_bounds(folder, make):
    feed, _ = make()
    (batch,) = feed.batches(0, 1)
    inputs = batch.inputs["image"]
    for number, image in zip(batch.rows.tolist(), images_of(inputs), strict=True):
        np.testing.assert_array_equal(image, expected(folder, number))
        assert 16 <= min(image.shape[:2]) <= 24
    assert len({tuple(size) for size in inputs["sizes"].tolist()}) > 3
    feed, _ = make("data.image.stored=20")
    shapes = [image.shape for image in images_of(feed.batch(drawn(1, 4)).inputs["image"])]
    assert shapes == [(20, 40, 3), (20, 20, 3)]


def drawn(*rows):
    return Draw(0, np.array(rows), np.zeros(len(rows), np.int64))


def test_squares_are_what_is_cropped_where_asked_for_and_what_is_judged(folder, make):
    feed, _ = make("data.image.stored=square")
    inputs = feed.batch(drawn(1, 5)).inputs["image"]
    for number, pixels in zip((1, 5), inputs["pixels"], strict=True):
        np.testing.assert_array_equal(pixels, resize(decode(folder / f"{number:02d}.png"), 16))
    feed, _ = make(augmented=False)
    assert torch.equal(feed.batch(drawn(1, 5)).inputs["image"]["pixels"], inputs["pixels"])


@pytest.mark.parametrize("overrides", [["data.workers=2"], ["data.cache_gb=0"], ["data.cache_gb=0", "data.workers=2"]])
def test_views_are_the_same_stored_or_not_and_by_any_number_of_workers(make, overrides):
    feed, method = make()
    other, _ = make(*overrides)
    for a, b in zip(feed.batches(0, 4), other.batches(0, 4), strict=True):
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.rows, b.rows)
        ours, theirs = method.view_inputs(a), method.view_inputs(b)
        assert ours["image"]["pixels"].shape == (16, 3, 16, 16)
        assert ours["local"]["pixels"].shape == (16, 3, 8, 8)
        assert all(torch.equal(ours[name]["pixels"], theirs[name]["pixels"]) for name in ours)


def test_views_of_a_rank_or_a_micro_batch_are_those_of_the_batch(make, monkeypatch):
    feed, method = make()
    (batch,) = feed.batches(0, 1)
    views = method.view_inputs(batch)
    parts = [method.view_inputs(part) for part in batch.split([3, 1, 4])]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    ranks = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        (share,) = make()[0].batches(0, 1)
        ranks.append((share, method.view_inputs(share)))
    for name, inputs in views.items():
        count = len(inputs["pixels"]) // 8
        assert torch.equal(torch.cat([part[name]["pixels"] for part in parts]), inputs["pixels"])
        by_row = dict(zip(batch.rows.tolist(), inputs["pixels"].split(count), strict=True))
        for share, made in ranks:
            for row, view in zip(share.rows.tolist(), made[name]["pixels"].split(count), strict=True):
                assert torch.equal(view, by_row[row])


def test_shards_give_the_originals_identities_and_views_of_a_table_and_go_on_with_them(folder, make):
    table, method = make()
    stream, _ = make(source="shards")
    batches = list(stream.batches(0, 6))
    rows = table.batch(drawn(*range(24)))
    for batch in batches:
        numbers = [int(name[-2:]) for name in batch.names]
        for number, identity, image in zip(numbers, batch.ids[:, 0], images_of(batch.inputs["image"]), strict=True):
            np.testing.assert_array_equal(image, expected(folder, number))
            assert identity == rows.ids[number, 0]
        same_seeds = table.batch(drawn(*numbers))
        same_seeds.seeds = batch.seeds
        ours, theirs = method.view_inputs(batch), method.view_inputs(same_seeds)
        assert all(torch.equal(ours[name]["pixels"], theirs[name]["pixels"]) for name in ours)
    position = json.loads(json.dumps(batches[2].position))
    for resumed, batch in zip(stream.batches(3, 6, position), batches[3:], strict=True):
        ours, theirs = method.view_inputs(resumed), method.view_inputs(batch)
        assert all(torch.equal(ours[name]["pixels"], theirs[name]["pixels"]) for name in ours)


def test_items_as_they_are_remain_the_squares_that_are_judged(folder, make):
    feed, _ = make()
    column = feed.columns["image"]
    squares = open_pixels(feed.sources[0], "image", size=16)
    for items in ([0], [1, 5], list(range(24))):
        np.testing.assert_array_equal(column.inputs(np.array(items))["pixels"], squares.take(items))


def test_mined_images_are_squares_since_no_view_changes_them(make):
    feed, method = make()
    items, ids, _ = feed.distinct("image")
    feed.hard = HardNegatives("image", items, ids, np.arange(24)[:, None] % len(items))
    batch = feed.batch(drawn(1, 5))
    squares = open_pixels(feed.sources[0], "image", size=16).take(items[[1, 5]])
    np.testing.assert_array_equal(method.view_inputs(batch)[MINED]["pixels"], squares)


def test_each_view_has_its_own_changes_and_what_is_not_cropped_is_the_square_in_the_centre(make, folder):
    batch: Batch = make()[0].batch(drawn(1, 2, 4))
    blurred = Augment(AugmentationConfig(crop_scale=(0.3, 1.0), blur=1.0, blur_sigma=(2.0, 2.0)))
    sharp = Augment(AugmentationConfig(crop_scale=(0.3, 1.0)))
    views = {
        "first": View("image", "image", blurred),
        "second": View("image", "image", sharp, size=12),
        "grey": View("image", "image", Augment(AugmentationConfig(greyscale=1.0))),
        "plain": View("image", "image"),
    }
    made = {name: inputs["pixels"] for name, inputs in make_views(views, batch, change=True, side=lambda _: 16).items()}
    assert made["plain"].dtype == torch.uint8
    made["plain"] = made["plain"].permute(0, 3, 1, 2).float()
    assert made["second"].shape == (3, 3, 12, 12)
    spread = {name: (view[:, :, :, 1:] - view[:, :, :, :-1]).abs().mean() for name, view in made.items()}
    assert spread["first"] < 0.4 * spread["second"]
    assert torch.allclose(made["grey"][:, 0], made["grey"][:, 2], atol=1e-5)
    for number, view in zip((1, 2, 4), made["plain"], strict=True):
        image = torch.tensor(expected(folder, number)).permute(2, 0, 1)
        square = reference.center_crop(image, [min(image.shape[1:])])
        assert (view - reference.resize(square, [16, 16], antialias=True)).abs().max() < 1.5
    as_judged = make_views(views, batch, change=False, side=lambda _: 16)
    assert all(torch.equal(inputs["pixels"].permute(0, 3, 1, 2), made["plain"]) for inputs in as_judged.values())


def test_a_transform_of_another_kind_gets_the_same_of_originals_as_of_squares(make):
    def invert(inputs, seeds, draw, size):
        return {"pixels": 255 - inputs["pixels"]}

    crops = Augment(AugmentationConfig(crop_scale=(0.3, 1.0)))
    views = {"inverted": View("image", "image", invert), "crop": View("image", "image", crops)}
    feed = make()[0]
    alone, mixed = (
        make_views(views, feed.batch(drawn(*rows)), change=True, side=lambda _: 16)["inverted"]["pixels"]
        for rows in ((0, 7), (0, 7, 1))
    )
    assert mixed.shape == (3, 16, 16, 3)
    assert mixed.dtype == torch.uint8
    assert torch.equal(mixed[:2], alone)


def test_an_image_larger_than_the_square_is_seen_beyond_it(make, folder):
    """The first and last columns of a wide image, which a centre crop never shows."""
    image = np.zeros((32, 96, 3), np.uint8)
    image[:, :16, 0] = image[:, -16:, 1] = 255
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    (folder / "wide.png").write_bytes(buffer.getvalue())
    (folder / "wide.jsonl").write_text((json.dumps({"image": str(folder / "wide.png")}) + "\n") * 8)
    shown = {}
    for stored in ("square", "24"):
        feed, method = make(f"data.image.stored={stored}", "method.local_size=16", source="wide.jsonl")
        (batch,) = feed.batches(0, 1)
        shown[stored] = method.view_inputs(batch)["local"]["pixels"].amax((0, 2, 3))
    assert shown["square"].max() < 0.01
    assert shown["24"][:2].min() > 0.5


@pytest.mark.parametrize("stored", ["24", "square"])
def test_batches_of_images_kept_on_the_device_are_the_same(make, stored, monkeypatch):
    monkeypatch.setattr("mmcl.data.batches.columns.fits", lambda parts, device: False)
    host, method = make(f"data.image.stored={stored}")
    monkeypatch.setattr("mmcl.data.batches.columns.fits", lambda parts, device: True)
    resident, _ = make(f"data.image.stored={stored}")
    taken = []
    take = Pixels.take
    monkeypatch.setattr(Pixels, "take", lambda self, rows: taken.append(self) or take(self, rows))
    for ours, theirs in zip(resident.batches(0, 4), list(host.batches(0, 4)), strict=True):
        ours, theirs = method.view_inputs(ours), method.view_inputs(theirs)
        assert all(torch.equal(ours[name]["pixels"], theirs[name]["pixels"]) for name in ours)
    assert taken
    assert all(part in host.columns["image"]._parts for part in taken)
