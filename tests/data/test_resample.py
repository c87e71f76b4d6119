"""Fast resampling, beside Pillow's."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mmcl.data import resample
from mmcl.data.images import resize
from mmcl.data.processors.image import ImageProcessor
from mmcl.data.resample import resampled


def drawing(width, height, seed=0):
    """Noise of few and of many pixels, which has edges of all kinds."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (max(1, height // 9), max(1, width // 9), 3), dtype=np.uint8))
    fine = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return Image.blend(coarse.resize((width, height)), fine, 0.3)


@pytest.mark.parametrize("filter", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
@pytest.mark.parametrize(
    ("size", "wanted"),
    [((150, 200), (224, 298)), ((640, 427), (335, 224)), ((1999, 31), (64, 224)), ((90, 61), (48, 32))],
)
def test_the_fast_way_is_within_two_levels_of_pillows(size, wanted, filter):
    image = drawing(*size)
    fast, exact = (np.asarray(resampled(image, wanted, filter, exact=exact)).astype(int) for exact in (False, True))
    np.testing.assert_array_equal(exact, np.asarray(image.resize(wanted, filter)))
    assert fast.shape == (wanted[1], wanted[0], 3)
    assert np.abs(fast - exact).max() <= 2
    assert np.mean(fast != exact) < 0.05


def test_what_torch_does_not_have_is_pillows(monkeypatch):
    image = drawing(60, 40)
    lanczos = resampled(image, (30, 20), Image.Resampling.LANCZOS, exact=False)
    np.testing.assert_array_equal(lanczos, image.resize((30, 20), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(resampled(image, (60, 40), Image.Resampling.BICUBIC, exact=False), image)
    monkeypatch.setattr(resample, "_fast", lambda: False)
    found = resampled(image, (30, 20), Image.Resampling.BICUBIC, exact=False)
    np.testing.assert_array_equal(found, image.resize((30, 20), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("mode", ["crop", "squash", "pad", "crop-40-bilinear", "crop-floor"])
def test_a_processor_resizes_fast_if_it_is_wanted(mode):
    images = [drawing(90, 61), drawing(50, 80, seed=1)]
    encoded = io.BytesIO()
    images[0].save(encoded, "PNG")
    expected = [resize(image, 32, mode) for image in images]
    for fast in (False, True):
        processor = ImageProcessor(32, mode, mean=[0.5] * 3, std=[0.5] * 3, fast_resize=fast)
        pixels = [processor.prepare(encoded.getvalue()).pixels, processor.prepare_many(images)[0][1]]
        for found, wanted in zip(pixels, expected, strict=True):
            assert np.abs(found.astype(int) - wanted).max() <= (2 if fast else 0)
    np.testing.assert_array_equal(pixels[0], resize(images[0], 32, mode, exact=False))
