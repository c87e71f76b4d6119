from __future__ import annotations

import logging
import math

import pytest
from PIL import Image

from mmcl.retrieval import Like
from mmcl.retrieval.search.queries import image_of, parse_mix, parts_of, shown
from mmcl.runtime.errors import MmclError


def test_a_mix_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("photo.jpg")
    parts = parse_mix(["red shoe", "photo.jpg:0.5", "leather:-.4", "id=a:b:2", "ratio 16:9:1"], {"text", "image"})
    (text, image, negative, like, colon) = parts
    assert text == ("red shoe", 1.0)
    assert (image[0].name, image[1]) == ("photo.jpg", 0.5)
    assert negative == ("leather", -0.4)
    assert like == (Like("a:b"), 2.0)
    assert colon == ("ratio 16:9", 1.0)
    assert shown(parts) == "red shoe + 0.5 × photo.jpg - 0.4 × leather + 2 × id=a:b + ratio 16:9"
    assert image_of(parts) == image[0]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "a query is empty"),
        ([("  ", 1.0)], "a query is empty"),
        ([("red", 0)], "the weight of 'red' is 0"),
        ([("red", math.nan)], "the weight of 'red' is nan"),
        ([("red", "much")], "the weight of 'red' is 'much'"),
        ([("red", 1.0, 2.0)], r"\(input, weight\)"),
    ],
)
def test_what_is_no_query_is_refused(query, message):
    with pytest.raises(MmclError, match=message):
        parts_of(query)


def test_the_name_of_a_missing_image_is_said_to_be_words(caplog):
    with caplog.at_level(logging.WARNING, logger="mmcl"):
        assert parse_mix(["gone.jpg:2"], {"text", "image"}) == [("gone.jpg", 2.0)]
    assert "gone.jpg: there is no such file" in caplog.text
