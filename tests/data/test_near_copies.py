"""Copies of an image are found in another size and file; images that merely resemble each other are not copies."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from mmcl.data.check import check_source
from mmcl.data.near_copies import image_fingerprint, near
from mmcl.data.sources import open_source

RNG = np.random.default_rng(0)


def fingerprints(images):
    return np.stack([np.frombuffer(image_fingerprint(image), np.uint8) for image in images])


def copied(image, size=1.0, quality=None):
    file = io.BytesIO()
    small = image.resize([max(1, round(side * size)) for side in image.size])
    small.save(file, "PNG") if quality is None else small.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def photographs():
    """60 parts of two photographs, in several sizes."""
    for whole in map(Image.fromarray, load_sample_images().images):
        for _ in range(30):
            width = int(RNG.integers(120, 400))
            left, top = int(RNG.integers(whole.width - width)), int(RNG.integers(whole.height - width * 3 // 4))
            yield whole.crop((left, top, left + width, top + width * 3 // 4))


def drawings():
    rows = open_source("sample:shapes", split="test").select(range(100))
    return [Image.open(io.BytesIO(image)).convert("RGB") for image in rows.images("image", range(100))]


@pytest.mark.parametrize("change", [{"size": 0.5}, {"quality": 60}, {"size": 0.5, "quality": 60}])
@pytest.mark.parametrize("images", [photographs, drawings])
def test_copies_at_half_the_size_and_compressed_anew_are_found_and_nothing_else(images, change):
    originals = list(images())
    count = len(originals)
    alike = near(fingerprints(originals + [copied(image, **change) for image in originals]))
    links = alike.neighbours().toarray() + np.eye(int(alike.kinds.max()) + 1) > 0
    found = links[alike.kinds[:count]][:, alike.kinds[count:]]
    assert alike.complete
    assert np.diagonal(found).mean() > 0.98
    assert (found & ~np.eye(count, dtype=bool)).sum() == 0
    assert not np.triu(links[alike.kinds[:count]][:, alike.kinds[:count]], 1).any()


def test_drawings_on_flat_backgrounds_are_not_each_others_copies():
    facts = check_source("sample:shapes", split="test", against=["train"]).facts
    assert facts["images"]["near_rows"] == []
    assert facts["leaks"]["count"] == facts["leaks"]["images"]["count"] == 0


def changing(steps):
    """Images that differ from the next in one cell, by less than makes two images different."""
    cells = RNG.integers(40, 200, (12, 12)).astype(np.uint8)
    for step in range(steps):
        cells[6, 6] = 40 + 12 * step
        yield Image.fromarray(np.kron(cells, np.ones((20, 20), np.uint8)))


def test_likeness_is_not_passed_on():
    alike = near(fingerprints(changing(9)))
    links = alike.neighbours().toarray() + np.eye(9) > 0
    order = np.argsort(np.argsort(alike.kinds))
    distance = np.abs(order[:, None] - order)
    assert links[distance == 1].all(), "each is like the next"
    assert not links[distance > 3].any(), "and the first is not like the last"
    groups = alike.groups()
    for group in np.unique(groups):
        kinds = alike.kinds[groups == group]
        assert links[np.ix_(kinds, kinds)].all(axis=1).any(), "one is like all others"
    assert 1 < len(np.unique(groups)) < 9


def test_images_of_one_colour_are_like_their_copies_alone():
    colours = [(200, 60, 60), (200, 60, 120), (60, 200, 60), (60, 60, 60)]
    flat = [Image.new("RGB", (48, 40), colour) for colour in colours]
    alike = near(fingerprints(flat + [copied(image, 0.5, 60) for image in flat]))
    groups = alike.groups()
    assert groups[:4].tolist() == groups[4:].tolist()
    assert len(set(groups)) == 4


def test_no_images_at_all():
    alike = near(np.empty((0, fingerprints(changing(1)).shape[1]), np.uint8))
    assert alike.complete
    assert alike.groups().tolist() == []
