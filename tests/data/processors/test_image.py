"""Images to the pixels of a tower: one or many, of any kind."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mmcl.data.images import ImageError
from mmcl.data.processors.image import ImageProcessor

COLOURS = {"mean": [0.5] * 3, "std": [0.5] * 3}


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("resize", "size", "box"), [("squash", (20, 20), None), ("crop", (30, 20), (5, 0, 25, 20))])
def test_an_image_is_resized_and_cut_as_pillow_does(resize, size, box):
    image = Image.fromarray(noise(40, 60))
    expected = np.asarray(image.resize(size, Image.Resampling.BICUBIC).crop(box), dtype=int)
    pixels = ImageProcessor(20, resize, **COLOURS).prepare(image).pixels
    assert pixels.shape == (20, 20, 3)
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_many_images_are_those_of_each_and_what_cannot_be_read_is_named():
    processor = ImageProcessor(16, "crop", **COLOURS)
    images = [noise(30, 50, 1), b"no image", Image.fromarray(noise(64, 20, 2)), processor.prepare(noise(9, 9, 3))]
    pixels, errors = processor.prepare_many(images)
    assert pixels.shape == (4, 16, 16, 3)
    assert list(errors) == [1]
    assert not pixels[1].any()
    for place in (0, 2):
        np.testing.assert_array_equal(pixels[place], processor.prepare(images[place]).pixels)
    np.testing.assert_array_equal(pixels[3], images[3].pixels)
    with pytest.raises(ImageError):
        processor.prepare(b"no image")


def test_a_large_jpeg_is_decoded_at_its_full_size_where_that_is_asked_for():
    buffer = io.BytesIO()
    Image.fromarray(noise(100, 100)).resize((800, 800)).save(buffer, "JPEG")
    processor = ImageProcessor(16, "squash", **COLOURS)
    fast = processor.prepare(buffer.getvalue()).pixels
    processor.exact_decoding = True
    exact = processor.prepare(buffer.getvalue()).pixels
    np.testing.assert_array_equal(exact, processor.prepare(Image.open(buffer)).pixels)
    assert not np.array_equal(fast, exact)
