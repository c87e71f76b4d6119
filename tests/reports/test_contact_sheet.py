"""The contact sheet shows what a method sees: stored images, their views and the tokens of texts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from mmcl.config import load_config
from mmcl.reports import write_contact_sheet
from mmcl.reports.contact_sheet import contact_sheet
from mmcl.runtime.errors import MmclError
from mmcl.training.first_views import first_views


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "cache"))
    for number in range(6):
        Image.new("RGB", (20 + number, 16), (40 * number, 0, 255)).save(tmp_path / f"{number}.png")
    rows = [{"id": f"row {n}", "image": f"{n}.png", "text": f"number {n} in blue and red"} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    vit = {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 1, "img_size": 16, "dynamic_img_size": True}

    def make(method: str, **more):
        image = {"name": "timm:vit_tiny_patch16_224", "args": vit}
        text = {"name": "scratch", "layers": 1, "width": 8, "heads": 1, "tokenizer": {"vocab_size": 40}}
        return load_config(
            {
                "name": "tiny",
                "method": {"name": method},
                "data": {"train": {"source": str(tmp_path / "rows.jsonl")}, "image": {"size": 16}},
                "model": {"dim": 8, "image": image} | ({"text": text} if method == "clip" else {}),
                "training": {"batch_size": 4},
                **more,
            }
        )

    return make


def test_first_views_are_the_stored_images_and_their_random_changes(config):
    seen = first_views(config("simclr", augmentation={"crop_scale": [0.5, 1.0], "greyscale": 1.0}), 3)
    assert list(seen.columns) == ["image, as stored", "image, view 1", "image, view 2"]
    assert len(seen.names) == 3
    for name, stored, first, second in zip(seen.names, *seen.columns.values(), strict=True):
        number = int(name.removeprefix("row "))
        assert stored.shape == (16, 20 + number, 3)
        assert (stored == (40 * number, 0, 255)).all()
        for view in (first, second):
            assert view.shape == (16, 16, 3)
            assert view.dtype == np.uint8
            assert (view == view[:1, :1, :1]).all()


def test_texts_are_the_tokens_that_are_read_and_no_more_rows_than_a_batch_has(config):
    seen = first_views(config("clip"), 50)
    assert list(seen.columns) == ["image, as stored", "image, as seen", "text, as seen"]
    assert len(seen.names) == 4
    for name, tokens in zip(seen.names, seen.columns["text, as seen"], strict=True):
        joined = "".join(tokens).replace(" ", "")
        assert f"number{name.removeprefix('row ')}inblueandred" in joined


def test_the_sheet_has_every_image_at_its_place():
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]], np.uint8)
    images = [np.full((8, 12, 3), colour, np.uint8) for colour in colours]
    tokens = [["<s>", "a", "word" * 300], ["b"] * 200]
    sheet = np.asarray(contact_sheet("a heading " * 9, {"one": images[:2], "two": images[2:], "text": tokens}))
    places = [np.argwhere((sheet == colour).all(axis=2)).mean(axis=0) for colour in colours]
    assert places[0][0] == places[2][0] < places[1][0] == places[3][0]
    assert places[0][1] == places[1][1] < places[2][1] == places[3][1]


def test_the_sheet_is_written_as_png_or_refused_in_one_line(config, tmp_path):
    path = write_contact_sheet(config("clip"), tmp_path / "new" / "sheet.png", 2)
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
    with pytest.raises(MmclError, match=r"ends with \.png"):
        write_contact_sheet(config("clip"), tmp_path / "sheet.jpg", 2)
    (tmp_path / "file").touch()
    with pytest.raises(MmclError, match="cannot be written"):
        write_contact_sheet(config("clip"), tmp_path / "file" / "sheet.png", 2)
