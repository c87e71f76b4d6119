import io
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmcl.data import samples
from mmcl.data.samples import shapes
from mmcl.data.samples.shapes import Scene, Thing

FEW = {"train": 60, "dev": 20, "dev_unseen": 20, "test": 20, "test_unseen": 20}


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png))).astype(int)


def things(row):
    words = row["text"].split(" ")
    return {(words[2], words[3]), (words[-2], words[-1])}


def test_the_same_seed_gives_the_same_bytes():
    assert shapes.rows(3, FEW) == shapes.rows(3, FEW)
    assert shapes.rows(3, FEW) != shapes.rows(4, FEW)


def test_held_out_pairs_are_in_unseen_splits_only():
    for split, rows in shapes.rows(0, FEW).items():
        for row in rows:
            assert bool(things(row) & shapes.HELD_OUT) == split.endswith("_unseen")


def test_every_held_out_colour_and_shape_is_trained_on_in_other_pairs():
    assert {colour for colour, _ in shapes.HELD_OUT} == set(shapes.COLOURS)
    assert {shape for _, shape in shapes.HELD_OUT} == set(shapes.SHAPES)


def test_no_scene_is_reported_twice():
    captions = [row["text"] for rows in shapes.rows(0, FEW).values() for row in rows]
    inverse = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    known = set()
    for text in captions:
        relation = next(r for r in inverse if f" {r} " in text)
        first, second = text.split(f" {relation} ")
        assert text not in known
        known.update((text, f"{second} {inverse[relation]} {first}"))


@pytest.mark.parametrize(
    ("relation", "axis", "sign"), [("left of", 1, -1), ("right of", 1, 1), ("above", 0, -1), ("below", 0, 1)]
)
def test_the_image_shows_what_the_caption_says(relation, axis, sign):
    scene = Scene(Thing("small", "red", "circle"), relation, Thing("large", "blue", "square"))
    assert scene.caption == f"a small red circle {relation} a large blue square"
    for seed in range(10):
        image = pixels(shapes.draw(shapes.place(scene, random.Random(seed))))
        red = np.argwhere(np.abs(image - shapes.COLOURS["red"]).sum(2) < 30)
        blue = np.argwhere(np.abs(image - shapes.COLOURS["blue"]).sum(2) < 30)
        assert sign * (red.mean(0) - blue.mean(0))[axis] > 10
        assert 30 < len(red) < len(blue)


def test_edges_are_smooth():
    scene = Scene(Thing("large", "black", "circle"), "above", Thing("large", "black", "star"))
    assert len(np.unique(pixels(shapes.draw(shapes.place(scene, random.Random(0)))))) > 8


def test_boxes_and_mask_are_where_the_image_is_coloured():
    few = {"train": 40}
    plain, annotated = shapes.rows(5, few)["train"], shapes.rows(5, few, annotated=True)["train"]
    assert [row["image"] for row in plain] == [row["image"] for row in annotated]
    for row in annotated:
        image, mask, words = pixels(row["image"]), pixels(row["mask"]), row["text"].split(" ")
        assert row["shapes"] == [words[3], words[-1]]
        assert (image[mask > 0] < 250).any(axis=1).all()
        for name, (left, top, right, bottom), colour in zip(
            row["shapes"], row["boxes"], (words[2], words[-2]), strict=True
        ):
            of_shape = (mask == 1 + shapes.SHAPES.index(name))[top:bottom, left:right]
            assert all(edge.any() for edge in (of_shape[0], of_shape[-1], of_shape[:, 0], of_shape[:, -1]))
            painted = (image == shapes.COLOURS[colour]).all(axis=2)[top:bottom, left:right]
            assert of_shape[painted].all()  # pixels that are wholly covered
            assert of_shape.sum() >= painted.sum() > 0


def test_get_builds_once_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path))
    monkeypatch.setattr(shapes, "SPLITS", FEW)
    folder = samples.get("shapes")
    for split in FEW:
        table = pq.read_table(folder / f"{split}.parquet")
        assert table.column_names == ["id", "image", "text", "concept", "vendor"]
    before = (folder / "sample.json").stat().st_mtime_ns
    assert samples.get("shapes") == folder
    assert (folder / "sample.json").stat().st_mtime_ns == before
