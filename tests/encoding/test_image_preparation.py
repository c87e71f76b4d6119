"""Images are prepared by the threads that decode them, as the encoder itself would, and exactly on request."""

from __future__ import annotations

import io
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch import nn

from mmcl.config.model import HeadConfig
from mmcl.data.images import decode
from mmcl.data.processors.image import ImageProcessor
from mmcl.data.sources import open_source
from mmcl.encoding import compute, encode_source
from mmcl.encoding.encoder import Encoder
from mmcl.evaluation.tasks.rows import diagnostics_of_rows
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.image.tower import ImageTower
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def encoder():
    """Its vectors are the pixels of what it is given, pooled."""
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(4), nn.Flatten())
    processor = ImageProcessor(16, "crop-24-floor", mean=[0.5] * 3, std=[0.5] * 3)
    tower = ImageTower(net, {"name": "tiny"}, processor)
    return Encoder(
        Towers({"image": ImageEmbedder(processor, tower, Head(HeadConfig(kind="none"), 48, 48))}, 48, "tiny")
    ).eval()


def jpeg(seed, height=500, width=400):
    noise = np.random.default_rng(seed).integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((width, height)).save(buffer, "JPEG")
    return buffer.getvalue()


def table(tmp_path, images):
    pq.write_table(pa.table({"image": images}), tmp_path / "images.parquet")
    return open_source(tmp_path / "images.parquet")


def test_a_prepared_image_has_the_vector_of_the_image(encoder, tmp_path):
    images = [jpeg(0), jpeg(1)]
    expected = encoder.encode(images)
    np.testing.assert_array_equal(encoder.encode([encoder.prepare_image(image) for image in images]), expected)
    # a batch of one may be multiplied in another order than a batch of two, so one is compared with one
    np.testing.assert_array_equal(encoder.encode(encoder.prepare_image(images[1])), encoder.encode(images[1]))
    stored = encode_source(encoder, table(tmp_path, images), "image", tmp_path / "v")
    np.testing.assert_array_equal(np.concatenate([vectors for _, vectors in stored.iter_shards()]), expected)


def test_images_are_decoded_while_the_batch_before_is_computed(encoder, monkeypatch):
    embedder, second = encoder.embedder("image"), threading.Event()
    read, forward, batches = compute.read_images, embedder.tower.net.forward, []

    def read_and_tell(images, *options):
        batches.append(len(images))
        if len(batches) == 2:
            second.set()
        return read(images, *options)

    def wait_for_the_second(pixels):
        assert second.wait(10), "the second batch is not read before the first one is done"
        return forward(pixels)

    images = [jpeg(number) for number in range(5)]
    expected = encoder.encode(images)
    monkeypatch.setattr(compute, "read_images", read_and_tell)
    monkeypatch.setattr(embedder.tower.net, "forward", wait_for_the_second)
    np.testing.assert_allclose(encoder.encode(images, batch_size=2), expected, atol=1e-5)
    assert batches == [2, 2, 1]


def test_images_are_resized_fast_on_request_alone(encoder, tmp_path):
    images = [jpeg(0, 61, 90), jpeg(1, 70, 50)]
    exact = encoder.encode([decode(image) for image in images])
    np.testing.assert_array_equal(encoder.encode(images), exact)
    rows, pixels = table(tmp_path, images), encoder.prepare_image(images[1]).pixels
    encode_source(encoder, rows, "image", tmp_path / "v")
    encoder.fast_resize = True
    assert not np.array_equal(encoder.prepare_image(images[1]).pixels, pixels)
    fast = encoder.encode(images)
    np.testing.assert_allclose(fast, exact, atol=2e-3)
    with pytest.raises(MmclError, match="fast_resize"):
        encode_source(encoder, rows, "image", tmp_path / "v")
    stored = encode_source(encoder, rows, "image", tmp_path / "w")
    np.testing.assert_array_equal(stored.take(np.arange(2)), fast)


def test_exact_decoding_gives_the_vectors_of_decoded_images(encoder, tmp_path):
    images = [jpeg(0), jpeg(1)]
    fast, exact = encoder.encode(images), encoder.encode([decode(image) for image in images])
    assert not np.array_equal(fast, exact)
    rows = table(tmp_path, images)
    similar = diagnostics_of_rows(encoder, rows, text=None).to_dict()
    encode_source(encoder, rows, "image", tmp_path / "v")
    encoder.exact_decoding = True
    np.testing.assert_array_equal(encoder.encode(images), exact)
    assert diagnostics_of_rows(encoder, rows, text=None).to_dict() != similar
    with pytest.raises(MmclError, match="exact_decoding"):
        encode_source(encoder, rows, "image", tmp_path / "v")
