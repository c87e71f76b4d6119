"""Originals: images with nothing cut off and within bounds, for random crops."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mmcl.data import resample as module
from mmcl.data.identity import stable_hash
from mmcl.data.images import decode, decode_originals, image_hash, load_original, original, resize


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x / max(1, width - 1), 255 * y / max(1, height - 1)
    return np.stack([red, green, 128 + 100 * np.sin(x / 9) * np.cos(y / 7)], -1).astype(np.uint8)


def encoded(array: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def test_an_original_keeps_all_of_an_image_in_bounds() -> None:
    wide = Image.fromarray(smooth(60, 90))
    for stored, expected in ((100, (60, 90)), (48, (48, 72)), (20, (32, 48))):
        array = original(wide, 32, "crop", stored)
        assert array.shape[:2] == expected
        np.testing.assert_array_equal(array, np.asarray(wide.resize(expected[::-1], Image.Resampling.BICUBIC)))
    assert original(Image.fromarray(smooth(20, 30)), 32, "crop", 48).shape == (32, 48, 3), "as large as in use"
    assert original(Image.fromarray(smooth(20, 30)), 32, "keep", 48).shape == (20, 30, 3)
    assert original(wide, 32, "crop-40-bilinear", 36).shape == (40, 60, 3), "what use resizes to"
    with pytest.raises(ValueError, match="resize mode"):
        original(wide, 32, "cut", 48)


def test_an_original_has_the_geometry_of_use() -> None:
    wide = Image.fromarray(smooth(60, 90))
    for stored, side in ((48, 48), (100, 60)):
        np.testing.assert_array_equal(original(wide, 32, "squash", stored), resize(wide, side, "squash"))
    for stored, side in ((48, 48), (100, 90)):
        np.testing.assert_array_equal(original(wide, 32, "pad", stored), resize(wide, side, "pad"))
    small = Image.fromarray(smooth(20, 30))
    for mode in ("squash", "pad"):
        np.testing.assert_array_equal(original(small, 32, mode, 48), resize(small, 32, mode))


@pytest.mark.parametrize("mode", ["crop", "squash", "pad", "keep", "crop-bilinear", "crop-floor"])
def test_a_square_of_the_towers_size_is_its_own_original_whatever_is_stored(mode: str) -> None:
    square = Image.fromarray(smooth(32, 32))
    for stored in (8, 32, 100):
        np.testing.assert_array_equal(original(square, 32, mode, stored), resize(square, 32, mode))
    small = Image.fromarray(smooth(20, 20))
    if mode != "keep":
        np.testing.assert_array_equal(original(small, 32, mode, 48), resize(small, 32, mode))


def test_a_very_long_original_is_cut_at_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STRIP_PIXELS", 10_000)
    strip = original(Image.fromarray(smooth(1000, 10)), 16, "crop", 20)
    assert strip.shape[0] * strip.shape[1] <= 10_000


def test_an_original_takes_no_more_than_a_few_squares_however_long_it_is() -> None:
    for height, width in ((1, 1600), (3000, 2), (1, 32), (40, 1279)):
        image = Image.fromarray(smooth(height, width))
        found = original(image, 16, "crop", 24).shape[:2]
        assert min(found) >= 16
        assert max(found) <= 32 * min(found)
        assert max(found) == min(max(height, width) * min(found) // min(height, width), 32 * min(found))


def test_originals_are_decoded_in_threads_as_alone() -> None:
    files = [encoded(smooth(30 + 7 * n, 50), "PNG") for n in range(9)] + [b"no image", None]
    for threads in (1, 3):
        arrays, errors = decode_originals(files, 16, "crop", 24, threads)
        assert list(errors) == [9, 10]
        assert arrays[9].shape == (0, 0, 3)
        for image, array in zip(files[:9], arrays, strict=False):
            np.testing.assert_array_equal(array, original(decode(image), 16, "crop", 24))
    large = encoded(smooth(800, 1200), "JPEG")
    exact = load_original(large, 16, "crop", 24, exact_decoding=True)
    np.testing.assert_array_equal(exact, original(decode(large), 16, "crop", 24))
    quick = load_original(large, 16, "crop", 24)
    assert abs(quick.astype(int) - exact).max() < 12


def test_a_bound_below_the_towers_size_costs_no_sharpness() -> None:
    stripes = np.broadcast_to(128 + 100 * np.sin(np.arange(900) / 4)[None, :, None], (600, 900, 3))
    large = encoded(stripes.astype(np.uint8), "JPEG")
    exact, quick = (load_original(large, 200, "crop", 8, exact_decoding=exact) for exact in (True, False))
    assert exact.shape == (200, 300, 3)
    assert abs(quick.astype(int) - exact).max() < 12


def test_the_same_pixels_in_another_shape_are_another_image() -> None:
    image = smooth(20, 30)
    shapes = [(20, 30, 3), (30, 20, 3), (24, 25, 3), (25, 24, 3)]
    assert len({image_hash(image.reshape(shape)) for shape in shapes}) == 4
    assert image_hash(image) == image_hash(np.asfortranarray(image))
    assert image_hash(image[:, :20]) == stable_hash(image[:, :20].tobytes()), "squares keep the identities of before"
