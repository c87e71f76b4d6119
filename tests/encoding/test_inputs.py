"""What users hand to ``encode``: every container of texts and images is embedded, or refused in one line."""

from __future__ import annotations

import io
import os
import types

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image

from mmcl.runtime.errors import MmclError

from .test_encoder import make_encoder

TEXTS = ["a red dog", "a blue car", "a red dog"]


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


@pytest.fixture(scope="module")
def expected(encoder):
    return encoder.encode(TEXTS)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "one.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize(
    "make",
    [
        tuple,
        iter,
        np.array,
        lambda texts: np.array(texts, dtype=object),
        lambda texts: [np.array(text) for text in texts],
        lambda texts: (text for text in texts),
        lambda texts: pd.DataFrame({"caption": texts})["caption"],
        lambda texts: pd.Series(texts, index=[5, 5, 1], dtype="category"),
        pd.Index,
        pa.array,
        lambda texts: pa.table({"caption": texts})["caption"],
        lambda texts: dict(enumerate(texts)).values(),
    ],
)
def test_a_column_of_texts_is_embedded_whatever_holds_it(encoder, expected, make):
    np.testing.assert_array_equal(encoder.encode(make(TEXTS)), expected)


@pytest.mark.parametrize("make", [np.array, np.str_, lambda text: np.array(text, dtype=object)])
def test_a_text_without_dimensions_is_a_text(encoder, expected, make):
    np.testing.assert_allclose(encoder.encode(make(TEXTS[0])), expected[0], atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: io.BytesIO(path.read_bytes()),
        lambda path: path.open("rb"),
        lambda path: bytearray(path.read_bytes()),
        lambda path: memoryview(path.read_bytes()),
        lambda path: next(entry for entry in os.scandir(path.parent) if entry.name == path.name),
        lambda path: np.array(path.read_bytes(), dtype=object),
    ],
)
def test_an_image_in_any_wrapping_is_an_image(encoder, image, make):
    vector = encoder.encode(image)
    np.testing.assert_array_equal(encoder.encode(make(image)), vector)
    np.testing.assert_array_equal(encoder.encode([make(image)])[0], vector)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            pd.DataFrame({"caption": TEXTS, "id": [1, 2, 3]}),
            r"got a DataFrame; give one of its columns.*'caption', 'id'",
        ),
        (pa.table({"caption": TEXTS}), "got a Table; give one of its columns"),
        (set(TEXTS), "got a set, which has no order"),
        (frozenset(TEXTS), "got a frozenset, which has no order"),
        ({"text": TEXTS}, "input 0 is a dict"),
        (types.MappingProxyType({"text": "a"}), "got a mappingproxy"),
        (io.StringIO("a\nb"), "opened as text"),
        ([io.StringIO("a")], "opened as text"),
        (np.array([["a", "b"]]), "input 0 is an array of <U1"),
        (np.array(3), "got a int"),
        (torch.tensor(1.0), "cannot be listed"),
        (pd.Series(["a", None]), "input 1 is"),
        (pd.Series(["a", 3]), "input 1 is a int"),
        ([{"text": "a"}], "input 0 is a dict"),
        (None, "got a NoneType"),
        (io.BytesIO(b""), "not a readable image"),
    ],
)
def test_what_is_no_input_is_one_line(encoder, inputs, message):
    with pytest.raises(MmclError, match=message):
        encoder.encode(inputs)


def test_a_closed_file_and_a_table_in_a_stream_are_one_line(encoder, image):
    with image.open("rb") as file:
        pass
    with pytest.raises(MmclError, match="cannot be read"):
        encoder.encode(file)
    with pytest.raises(MmclError, match="encode_stream: got a DataFrame"):
        encoder.encode_stream(pd.DataFrame({"caption": TEXTS}))


def test_words_that_name_an_image_file_are_embedded_and_said_once(encoder, image, caplog, monkeypatch):
    monkeypatch.chdir(image.parent)
    encoder.encode(["one.png", "two.png", "x" * 5000 + ".png", "\0.png", "one.png"])
    (said,) = [record.message for record in caplog.records if "names of image files" in record.message]
    assert "2 texts" in said
    caplog.clear()
    encoder.encode("one.png", modality="text")
    encoder.encode("one.png", modality="image")
    assert not caplog.records


def test_images_that_cannot_be_read_are_left_out_when_asked_for(encoder, image, caplog):
    bad = image.parent / "bad.png"
    bad.write_bytes(b"no image")
    inputs = [bad, "a red dog", image, image.parent / "none.png", bad, b"neither"]
    found = encoder.encode_with_details(inputs, on_error="skip", batch_size=2)
    vectors, skipped = found.vectors, found.skipped
    np.testing.assert_allclose(vectors, encoder.encode(["a red dog", image]), atol=1e-6)
    assert sorted(skipped) == [0, 3, 4, 5]
    assert skipped[3] == "no such file"
    assert "4 of 6 inputs left out" in caplog.text
    found = encoder.encode_with_details([bad], on_error="skip")
    assert (found.vectors.shape, len(found.truncated), list(found.skipped)) == ((0, 16), 0, [0])
    found = encoder.encode_with_details([image], on_error="skip")
    assert (found.vectors.shape, found.skipped) == ((1, 16), {})
    with pytest.raises(MmclError, match="not a readable image"):
        encoder.encode_with_details(bad, on_error="skip")
    with pytest.raises(MmclError, match="on_error is 'ignore'"):
        encoder.encode_with_details(inputs, on_error="ignore")
