from __future__ import annotations

import io
import re

import datasets
import numpy as np
import pytest
from PIL import Image

from mmcl.data.rows import Rows
from mmcl.reports import images_of_rows, write_search_page
from mmcl.retrieval import Like, Result
from mmcl.runtime.errors import MmclError


def encoded(colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def thumbnails(page):
    return re.findall(r'<img src="data:image/webp;base64,[\w+/=]+" alt="([^"]*)">', page)


def test_results_stand_with_thumbnails_labels_columns_and_scores(tmp_path):
    rows = Rows(
        datasets.Dataset.from_dict({"id": ["1", "2"], "image": [encoded(), encoded("blue")]}),
        name="shop",
        fingerprint="0",
    )
    found = [
        [Result(1, 0.9123, 1, "a red shoe", {"price": 12.5, "size": None}), Result(2, 0.5, 2)],
        [Result(1, 0.25, 3, "unknown")],
    ]
    path = write_search_page(
        tmp_path / "page.html", ["red <b>", Like(1)], found, title="Shop", image_of=images_of_rows(rows)
    )
    page = path.read_text(encoding="utf-8")
    assert thumbnails(page) == ["a red shoe", "2"]
    assert page.index("a red shoe") < page.index("0.500")
    for shown in ("0.912", "“red &lt;b&gt;”", "“id=1”", "1 · price 12.5", "2 queries, 3 results"):
        assert shown in page
    assert "<b>" not in page
    assert "size" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert not re.search(r"<script|\shref=|\son\w+=", page)


def test_images_are_the_files_that_results_name_and_those_that_were_searched_by(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded())
    (tmp_path / "b.png").write_bytes(b"no image")
    named = [
        Result(1, 1.0, "a", str(tmp_path / "a.png")),
        Result(2, 0.9, "b", "by a column", {"file": str(tmp_path / "a.png")}),
        Result(3, 0.8, "c", str(tmp_path / "b.png")),
        Result(4, 0.7, "d", "gone.png"),
    ]
    array = np.zeros((8, 8, 3), np.uint8)
    queries = [tmp_path / "a.png", array, [("words", 1.0), (array, -0.5)]]
    page = write_search_page(tmp_path / "p.html", queries, [named, [], []], title="x").read_text(encoding="utf-8")
    assert len(thumbnails(page)) == 5
    assert page.count("no image") == 1
    assert "words - 0.5 × an image" in page


def test_a_source_without_the_column_is_refused(tmp_path):
    rows = Rows(datasets.Dataset.from_dict({"id": ["1"]}), name="shop", fingerprint="0")
    with pytest.raises(MmclError, match="no column 'image'"):
        images_of_rows(rows)
