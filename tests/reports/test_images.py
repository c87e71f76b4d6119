import base64
import io

import numpy as np
from PIL import Image

from mmcl.reports.images import SIDE, data_uri


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def shown(uri: str | None) -> Image.Image:
    assert uri is not None
    head, _, body = uri.partition(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(body)))


def test_large_images_are_made_small_and_keep_their_shape() -> None:
    assert shown(data_uri(encoded(Image.new("RGB", (1600, 800), "red")))).size == (SIDE, SIDE // 2)


def test_small_images_stay_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (4, 6, 3)).astype(np.uint8).repeat(12, 0).repeat(12, 1)
    result = shown(data_uri(encoded(Image.fromarray(pixels)))).convert("RGB")
    assert result.size == (72, 48)
    assert np.abs(np.asarray(result).astype(int) - pixels).mean() < 16


def test_transparent_images_lie_on_white() -> None:
    result = shown(data_uri(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0))))).convert("RGB")
    assert np.asarray(result).min() > 250


def test_nothing_of_the_file_but_its_pixels_reaches_the_page() -> None:
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    uri = data_uri(encoded(Image.new("RGB", (8, 8)), "JPEG", exif=exif))
    assert not shown(uri).getexif()


def test_what_is_no_image_is_none() -> None:
    assert data_uri(None) is None
    assert data_uri(b"") is None
    assert data_uri(b"<svg onload='alert(1)'/>") is None
