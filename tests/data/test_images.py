"""Images: every kind becomes the RGB it shows; what cannot be trusted is refused with a reason."""

from __future__ import annotations

import gzip
import io
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from torchvision.transforms import v2

from mmcl.data import images as module
from mmcl.data.images import ImageError, decode, decode_many, load_pixels, resize


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x / max(1, width - 1), 255 * y / max(1, height - 1)
    return np.stack([red, green, 128 + 100 * np.sin(x / 9) * np.cos(y / 7)], -1).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


IMAGE = Image.fromarray(smooth(31, 47))


def test_bytes_paths_pil_and_arrays_are_the_same_image(tmp_path: Path) -> None:
    IMAGE.save(tmp_path / "a.png")
    array = np.asarray(IMAGE)
    for image in (encoded(IMAGE, "PNG"), tmp_path / "a.png", str(tmp_path / "a.png"), IMAGE, array):
        decoded = decode(image)
        assert decoded.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(decoded), array)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(IMAGE, kind, exif=exif)
    by_hand = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }[orientation](np.asarray(IMAGE))
    np.testing.assert_array_equal(np.asarray(decode(data)), by_hand)
    np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))), by_hand)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("tag", [0x0128, 0x8769, 0x9286, 0x011A])
def test_a_tag_of_an_odd_type_harms_neither_pixels_nor_orientation(kind: str, tag: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    head = exif.tobytes()
    # One more entry, of a type that the tag does not have.
    body = bytearray(head[6:])
    count = int.from_bytes(body[8:10], "little" if body[:2] == b"II" else "big")
    order = "little" if body[:2] == b"II" else "big"
    entry = tag.to_bytes(2, order) + (2).to_bytes(2, order) + (4).to_bytes(4, order) + b"abc\0"
    body[8:10] = (count + 1).to_bytes(2, order)
    body = body[: 10 + 12 * count] + entry + body[10 + 12 * count :]
    data = encoded(IMAGE, kind, exif=head[:6] + bytes(body))
    assert decode(data).size == (IMAGE.height, IMAGE.width)


@pytest.mark.parametrize("tag", [0x8769, 0x8825, 0x011A, 0x0128, 0x9286, 0xC4A5])
def test_a_tiff_with_a_tag_of_an_odd_type_is_read_and_turned(tag: int) -> None:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    tags = ImageFileDirectory_v2()
    tags[0x0112] = 6
    tags.tagtype[tag] = 2
    tags[tag] = "abc"
    buffer = io.BytesIO()
    IMAGE.save(buffer, "TIFF", tiffinfo=tags)
    expected = np.rot90(np.asarray(IMAGE), -1)
    np.testing.assert_array_equal(np.asarray(decode(buffer.getvalue())), expected)


def test_transparency_is_composited_on_white() -> None:
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[:, :, 3] = [[255, 0, 128]] * 2
    expected = np.array([0, 255, 127], np.uint8)[None, :, None].repeat(2, 0).repeat(3, 2)
    np.testing.assert_allclose(np.asarray(decode(rgba)).astype(int), expected, atol=1)
    np.testing.assert_allclose(
        np.asarray(decode(encoded(Image.fromarray(rgba), "WEBP", lossless=True, exact=True))), expected, atol=1
    )
    grey = Image.fromarray(rgba).convert("LA")
    np.testing.assert_allclose(np.asarray(decode(encoded(grey, "PNG"))).astype(int), expected, atol=1)


def test_palette_with_and_without_transparency() -> None:
    palette = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert np.asarray(decode(encoded(palette, "PNG"))).tolist() == [colours]
    transparent = encoded(palette, "PNG", transparency=1)
    assert np.asarray(decode(transparent)).tolist() == [[colours[0], [255, 255, 255], colours[2]]]
    keyed = encoded(Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)), "PNG", transparency=(1, 2, 3))
    assert np.asarray(decode(keyed)).tolist() == [[[255, 255, 255], [4, 5, 6]]]


def test_grey_bilevel_and_cmyk() -> None:
    grey = np.asarray(IMAGE.convert("L"))
    np.testing.assert_array_equal(np.asarray(decode(grey)), grey[:, :, None].repeat(3, 2))
    np.testing.assert_array_equal(np.asarray(decode(grey[:, :, None])), np.asarray(decode(grey)))
    assert set(np.unique(np.asarray(decode(IMAGE.convert("1"))))) == {0, 255}
    cmyk = decode(encoded(IMAGE.convert("CMYK"), "JPEG", quality=98))
    np.testing.assert_allclose(np.asarray(cmyk).astype(int), np.asarray(IMAGE).astype(int), atol=24)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    levels = np.array([[0, 257, 1000, 32768, 65535]], np.uint16)
    expected = np.round(levels / 257)
    deep = Image.fromarray(levels)
    assert deep.mode == "I;16"
    for image in (deep, encoded(deep, "PNG"), encoded(deep, "TIFF"), deep.convert("I")):
        np.testing.assert_array_equal(np.asarray(decode(image))[:, :, 1], expected)


@pytest.mark.parametrize("scale", [1, 1 / 255])
def test_floating_point_levels_from_0_to_1_and_from_0_to_255_are_read(scale: float) -> None:
    levels = np.arange(256, dtype=np.float32).reshape(16, 16)
    deep = Image.fromarray(levels * np.float32(scale))
    assert deep.mode == "F"
    for image in (deep, encoded(deep, "TIFF")):
        np.testing.assert_array_equal(np.asarray(decode(image))[:, :, 2], levels)


@pytest.mark.parametrize("low", [0, 7])
def test_integers_of_32_bits_are_read_by_their_range(low: int) -> None:
    bright = Image.fromarray(np.array([[low, 100, 255]], np.int32))
    assert np.asarray(decode(encoded(bright, "TIFF")))[0, :, 0].tolist() == [low, 100, 255]


@pytest.mark.parametrize(
    "levels",
    [
        [-1000.0, 400.0],
        [0.0, 4000.0],
        [0.5, np.nan],
        [0.5, np.inf],
        [-1.0, 1.0],
        [0.0, 2.5],
        np.array([-5, 9], np.int32),
        [70000, 1],
    ],
)
def test_levels_of_which_nobody_knows_what_is_white_are_refused(levels: object) -> None:
    array = np.array([levels])
    with pytest.raises(ImageError, match="levels"):
        decode(encoded(Image.fromarray(array.astype(np.float32 if array.dtype.kind == "f" else np.int32)), "TIFF"))


def test_sixteen_bit_colour_png() -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    levels = np.array([[[0, 1000, 65535], [40000, 30000, 20000]]], np.uint16)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + levels.astype(">u2").tobytes())
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    np.testing.assert_allclose(np.asarray(decode(data)).astype(int), levels / 257, atol=1)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    np.testing.assert_allclose(np.asarray(decode(data))[4, 4].astype(int), [255, 0, 0], atol=3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_refused(kind: str) -> None:
    data = encoded(Image.fromarray(smooth(200, 200)), kind)
    with pytest.raises(ImageError):
        decode(data[: len(data) * 6 // 10])


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    for image, reason in [
        (None, "no image"),
        (b"", "empty"),
        (b"hello", "not an image in a format that Pillow reads"),
        (tmp_path / "a.jpg", "empty"),
        (tmp_path / "none.jpg", "no such file"),
        (tmp_path / "https://example.org/a.jpg", "a URL, not a file here"),
        (tmp_path, "Is a directory"),
        (np.zeros((2, 2, 3)), "an array of float64"),
        (np.zeros((2, 2, 5), np.uint8), "an array of uint8"),
        (np.zeros((0, 2, 3), np.uint8), "an array of uint8"),
    ]:
        with pytest.raises(ImageError, match=reason):
            decode(image)


@pytest.mark.parametrize(
    ("data", "cure"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "rasterise"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- a -->\n<svg:svg xmlns:svg='x'/>", "rasterise"),
        (gzip.compress(b"<svg width='1'></svg>", mtime=0), "rasterise"),
        ("<svg/>".encode("utf-16"), "rasterise"),
        (b"%PDF-1.7", "rasterise"),
        (b"<!DOCTYPE html><html>404</html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "convert it"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "video"),
        (b"\x1f\x8bdamaged", "not an image"),
        (b"II*\0\x08\0\0\0\0\0\0\0\0\0", "a TIFF of a kind"),
    ],
)
def test_other_files_are_called_what_they_are(data: bytes, cure: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(data)
    for image in (data, tmp_path / "a.png"):
        with pytest.raises(ImageError, match=cure):
            decode(image)


@pytest.mark.parametrize("limit", [900, 400])
def test_decompression_bombs_are_refused_where_pillow_warns_and_where_it_raises(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError, match="decompression bomb"):
            decode(encoded(Image.new("L", (40, 40)), "PNG"))


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (50, 70), (64, 64), (113, 450)])
def test_crop_equals_the_transform_of_clip(shape: tuple[int, int]) -> None:
    image = Image.fromarray(smooth(*shape))
    reference = v2.Compose([v2.Resize(64, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(64)])
    np.testing.assert_array_equal(resize(image, 64, "crop"), np.asarray(reference(image)))


def test_crop_of_an_extreme_strip_stays_small() -> None:
    strip = Image.fromarray(smooth(2, 60_000))
    pixels = resize(strip, 224, "crop")
    assert pixels.shape == (224, 224, 3)
    np.testing.assert_allclose(pixels[:, :, 0].astype(int), 127, atol=1)


def test_squash_and_pad() -> None:
    image = Image.fromarray(smooth(100, 50))
    np.testing.assert_array_equal(
        resize(image, 32, "squash"), np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
    )
    padded = resize(image, 32, "pad")
    np.testing.assert_array_equal(padded[:, 8:24], np.asarray(image.resize((16, 32), Image.Resampling.BICUBIC)))
    assert (padded[:, :8] == 255).all()
    assert (padded[:, 24:] == 255).all()
    assert resize(Image.new("RGB", (1000, 1)), 8, "pad").shape == (8, 8, 3)
    with pytest.raises(ValueError, match="resize mode"):
        resize(image, 32, "stretch")  # type: ignore[arg-type]


def test_draft_decoding_of_large_jpegs_keeps_the_image() -> None:
    data = encoded(Image.fromarray(smooth(1200, 1600)), "JPEG", quality=95)
    drafted = decode(data, target=64)
    assert drafted.size == (200, 150)
    assert decode(data).size == (1600, 1200)
    full, fast = resize(decode(data), 64).astype(int), resize(drafted, 64).astype(int)
    assert np.abs(full - fast).max() <= 6
    assert np.abs(full - fast).mean() < 0.7


def test_draft_decoding_is_left_out_on_request() -> None:
    data = encoded(Image.fromarray(smooth(1200, 1600)), "JPEG", quality=95)
    exact = resize(decode(data), 64)
    np.testing.assert_array_equal(load_pixels(data, 64, exact_decoding=True), exact)
    np.testing.assert_array_equal(decode_many([data], 64, exact_decoding=True)[0][0], exact)
    assert not np.array_equal(load_pixels(data, 64), exact)


def test_threads_hold_no_more_decoded_pixels_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = module._PixelBudget(1000)
    monkeypatch.setattr(module, "_budget", budget)
    held, lock = [], threading.Lock()

    def watched(image: Image.Image, *arguments: object, **options: bool) -> np.ndarray:
        with lock:
            held.append(budget.held)
        return resize(image, *arguments, **options)

    monkeypatch.setattr(module, "resize", watched)
    images = [encoded(Image.new("RGB", (side, side)), "PNG") for side in [20, 30, 40, 10] * 4]
    assert not decode_many(images, 8, threads=8)[1]
    assert budget.held == 0
    assert max(held) in (1000, 1600)  # one that is larger than all that is allowed is alone
    assert all(pixels <= 1000 or pixels == 1600 for pixels in held)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "F", "CMYK", "1"])
def test_large_images_are_converted_strip_by_strip_to_the_same_pixels(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmcl.data import image_modes

    image = IMAGE.convert("I;16" if mode == "I;16" else mode)
    expected = np.asarray(decode(image))
    monkeypatch.setattr(image_modes, "_STRIP_PIXELS", 200)
    np.testing.assert_array_equal(np.asarray(decode(image)), expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_decode_many_keeps_order_and_reasons(threads: int) -> None:
    good = [Image.fromarray(smooth(20 + i, 30)) for i in range(6)]
    images = [encoded(image, "PNG") for image in good]
    images[2] = images[2][:60]
    pixels, errors = decode_many([*images, None], 16, "squash", threads=threads)
    assert pixels.shape == (7, 16, 16, 3)
    assert list(errors) == [2, 6]
    assert errors[6] == "no image"
    assert not pixels[[2, 6]].any()
    for i in (0, 1, 3, 4, 5):
        np.testing.assert_array_equal(pixels[i], resize(good[i], 16, "squash"))
    assert decode_many([], 16)[0].shape == (0, 16, 16, 3)


@pytest.mark.parametrize("side", [(40, 33), (33, 47), (32, 51), (90, 64)])
def test_variants_that_pretrained_models_ask_for(side):
    transforms = pytest.importorskip("torchvision.transforms")
    drawn = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*side, 3), dtype=np.uint8))
    bilinear = transforms.InterpolationMode.BILINEAR
    cropped = transforms.Compose([transforms.Resize(32, bilinear), transforms.CenterCrop(32)])(drawn)
    assert np.array_equal(resize(drawn, 32, "crop-bilinear"), np.asarray(cropped))
    squashed = transforms.Resize((32, 32), bilinear)(drawn)
    assert np.array_equal(resize(drawn, 32, "squash-bilinear"), np.asarray(squashed))
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_rescale=False, do_normalize=False
    )(drawn)["pixel_values"][0]
    assert np.array_equal(resize(drawn, 32, "crop-floor"), np.moveaxis(np.asarray(theirs), 0, 2))
