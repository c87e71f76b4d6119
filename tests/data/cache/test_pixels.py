"""The pixel cache: what it gives equals plain decoding, it is built once, and nothing half-written is ever used."""

from __future__ import annotations

import errno
import io
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmcl.data.cache import pixels as module
from mmcl.data.cache.pixels import open_originals, open_pixels
from mmcl.data.identity import stable_hash
from mmcl.data.images import decode, image_hash, original, resize
from mmcl.data.sources import Rows, open_source
from mmcl.runtime.errors import MmclError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/pixels"


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 7 + seed, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def table(folder: Path, images: list) -> Rows:
    path = folder / "rows.parquet"
    pq.write_table(pa.table({"id": [f"row-{i}" for i in range(len(images))], "image": images}), path)
    return open_source(path)


def expected(images: list[bytes], size: int = 8) -> np.ndarray:
    return np.stack([resize(decode(image), size) for image in images])


def test_pixels_and_hashes_equal_plain_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 8 * 8 * 8 * 3)  # several blocks
    images = [png(i) for i in range(18)] + [png(3)]
    rows = table(tmp_path, images)
    pixels = open_pixels(rows, "image", size=8)
    assert (len(pixels), pixels.size, pixels.stored, pixels.errors) == (19, 8, True, {})
    np.testing.assert_array_equal(pixels.take(range(19)), expected(images))
    np.testing.assert_array_equal(pixels.take([4, 2, 4]), expected([images[4], images[2], images[4]]))
    assert pixels.take([]).shape == (0, 8, 8, 3)
    assert pixels.hashes.tolist() == [stable_hash(square.tobytes()) for square in expected(images)]
    assert pixels.hashes[3] == pixels.hashes[18]
    assert len(set(pixels.hashes.tolist())) == 18
    pixels.take([0])[:] = 0  # a copy: the cache is not written to


def test_it_is_built_once_and_anew_for_other_content(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = table(tmp_path, [png(0), png(1)])
    open_pixels(rows, "image", size=8)
    built = []
    build = module._build
    monkeypatch.setattr(module, "_build", lambda *args: (built.append(1), build(*args)))
    open_pixels(rows, "image", size=8)
    open_pixels(rows.select([0, 1]), "image", size=8)
    assert not built
    open_pixels(rows, "image", size=9)
    open_pixels(rows, "image", size=8, resize="pad")
    open_pixels(rows.select([1]), "image", size=8)
    assert len(built) == 3
    assert all(not folder.name.startswith(".") for folder in cache.iterdir())


def test_a_changed_image_file_is_noticed(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    rows = table(tmp_path, ["0.png", "1.png", "2.png"])
    before = open_pixels(rows, "image", size=8)
    assert before.errors == {2: f"{tmp_path / '2.png'}: no such file"}
    (tmp_path / "1.png").write_bytes(png(7))
    (tmp_path / "2.png").write_bytes(png(2))
    os.utime(tmp_path / "1.png", (0, 0))
    after = open_pixels(rows, "image", size=8)
    assert after.errors == {}
    np.testing.assert_array_equal(after.take([0, 1, 2]), expected([png(0), png(7), png(2)]))


@pytest.mark.parametrize("cache_gb", [20.0, 0.0])
def test_unreadable_images_are_zero_and_listed(tmp_path: Path, cache_gb: float) -> None:
    images = [png(0), png(1)[:50], None, png(3)]
    for _ in range(2):  # built, then found
        pixels = open_pixels(table(tmp_path, images), "image", size=8, cache_gb=cache_gb)
        assert list(pixels.errors) == [1, 2]
        assert pixels.errors[2] == "no image"
        assert pixels.hashes[[1, 2]].tolist() == [0, 0]
        assert not pixels.take([1, 2]).any()
        np.testing.assert_array_equal(pixels.take([3, 0]), expected([images[3], images[0]]))


def test_fail_names_row_and_path(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1)[:50])
    rows = table(tmp_path, ["none.png", "a.png"]).select([1])
    for _ in range(2):
        with pytest.raises(MmclError, match=rf"rows\.parquet: row row-1: {tmp_path / 'a.png'}: .*on_error to skip"):
            open_pixels(rows, "image", size=8, on_error="fail")
        open_pixels(rows, "image", size=8)  # now stored, and still an error
    with pytest.raises(MmclError, match="no column 'photo'"):
        open_pixels(rows, "photo", size=8)


def test_too_large_is_decoded_on_the_fly_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = [png(i) for i in range(5)]
    rows = table(tmp_path, images)
    with caplog.at_level(logging.WARNING, logger="mmcl"):
        pixels = open_pixels(rows, "image", size=8, cache_gb=1e-7)
        np.testing.assert_array_equal(pixels.take([4, 0]), expected([images[4], images[0]]))
        pixels.take([1])
    assert [record.message for record in caplog.records if "decoded again" in record.message] == [
        f"{rows.name}: 5 images take 0.00 GB as pixels and cache_gb is 1e-07: "
        "they are decoded again whenever they are used"
    ]
    assert not pixels.stored
    stored = open_pixels(rows, "image", size=8)
    assert stored.stored
    np.testing.assert_array_equal(stored.hashes, pixels.hashes)


def test_a_full_disk_is_an_error_and_leaves_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    rows = table(tmp_path, [png(0)])
    monkeypatch.setattr(module, "_pixel_file", lambda path: Full())
    with pytest.raises(OSError, match="No space left"):
        open_pixels(rows, "image", size=8)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("damaged", ["pixels.npy", "hashes.npy", "errors.json"])
def test_a_damaged_cache_is_built_anew(tmp_path: Path, cache: Path, damaged: str) -> None:
    images = [png(0), png(1)]
    rows = table(tmp_path, images)
    open_pixels(rows, "image", size=8)
    (entry,) = cache.iterdir()
    os.truncate(entry / damaged, 1)
    np.testing.assert_array_equal(open_pixels(rows, "image", size=8).take([0, 1]), expected(images))


def test_two_that_build_at_the_same_time_agree(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [png(i) for i in range(20)]
    rows = table(tmp_path, images)
    both, build = threading.Barrier(2, timeout=60), module._build
    monkeypatch.setattr(module, "_build", lambda *args: (both.wait(), build(*args)))  # both have found nothing
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(open_pixels, rows, "image", size=8) for _ in range(2)]
        for future in futures:
            np.testing.assert_array_equal(future.result().take(range(20)), expected(images))
    assert len(list(cache.iterdir())) == 1


def originals(images: list[bytes], stored: int) -> list[np.ndarray]:
    return [original(decode(image), 8, "crop", stored) for image in images]


def assert_same(arrays: list[np.ndarray], others: list[np.ndarray]) -> None:
    for array, other in zip(arrays, others, strict=True):
        np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize("cache_gb", [20.0, 0.0])
def test_originals_are_of_every_size_and_equal_plain_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_gb: float
) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 4 * 8 * 12**2)  # several blocks
    images = [png(i) for i in range(18)] + [png(3), png(1)[:50]]
    rows = table(tmp_path, images)
    for _ in range(2):  # built, then found
        pixels = open_originals(rows, "image", size=8, stored=12, cache_gb=cache_gb)
        assert (len(pixels), pixels.stored, list(pixels.errors)) == (20, cache_gb > 0, [19])
        expected = originals(images[:-1], 12)
        assert len({array.shape for array in expected}) > 8
        assert_same(pixels.take(range(19)), expected)
        assert_same(pixels.take([4, 2, 4]), [expected[4], expected[2], expected[4]])
        assert pixels.take([19])[0].size == 0
        assert pixels.hashes.tolist() == [*(image_hash(array) for array in expected), 0]
        assert pixels.sizes[:19].tolist() == [list(array.shape[:2]) for array in expected]


def test_originals_stand_beside_squares_and_other_bounds(tmp_path: Path, cache: Path) -> None:
    images = [png(7), png(9)]
    rows = table(tmp_path, images)
    for stored in (8, 12, 8):
        assert_same(open_originals(rows, "image", size=8, stored=stored).take([0, 1]), originals(images, stored))
    np.testing.assert_array_equal(open_pixels(rows, "image", size=8).take([0, 1]), expected(images))
    assert len(list(cache.iterdir())) == 3


def test_originals_that_grow_too_large_are_not_stored_until_there_is_room(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 0)  # of eight images
    images = [png(i) for i in range(20)]
    rows, needed = table(tmp_path, images), sum(array.nbytes for array in originals(images, 12))
    with caplog.at_level(logging.WARNING, logger="mmcl"):
        pixels = open_originals(rows, "image", size=8, stored=12, cache_gb=(needed - 1) / 1e9)
    assert "20 images take 0.00 GB as pixels and cache_gb is" in caplog.text
    assert not pixels.stored
    (entry,) = cache.iterdir()
    assert not (entry / "pixels.bin").exists()
    built = []
    monkeypatch.setattr(module, "_build", lambda *args, build=module._build: (built.append(1), build(*args)))
    open_originals(rows, "image", size=8, stored=12, cache_gb=(needed - 1) / 1e9)
    assert not built, "what is too large is not decoded again to find that out"
    stored = open_originals(rows, "image", size=8, stored=12, cache_gb=needed / 1e9)
    assert stored.stored
    assert_same(stored.take(range(20)), pixels.take(range(20)))
    (entry,) = cache.iterdir()
    os.truncate(entry / "pixels.bin", 100)
    assert_same(open_originals(rows, "image", size=8, stored=12).take(range(20)), pixels.take(range(20)))
