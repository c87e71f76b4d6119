"""The map of a corpus: places that follow from the vectors, and colours that follow from a column."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from mmcl.reports.map import colours_of, two_dimensions, write_map
from mmcl.runtime.errors import MmclError


@pytest.fixture(scope="module")
def vectors():
    """90 vectors about three directions, row after row of another."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 12)) * 2
    return (np.tile(centres, (30, 1)) + rng.normal(size=(90, 12)) * 0.1).astype("float32")


@pytest.mark.parametrize("method", ["pca", pytest.param("umap", marks=pytest.mark.slow)])
def test_what_is_similar_lies_together(vectors, method):
    if method == "umap":
        pytest.importorskip("umap")
    plane = two_dimensions(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), method)
    assert plane.shape == (90, 2)
    assert (plane.min(), plane.max()) == (0.0, 1.0)
    distances = np.linalg.norm(plane[:, None] - plane[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (distances.argmin(1) % 3 == np.arange(90) % 3).all()


def test_the_page_has_a_point_a_row_with_what_is_known_of_it(vectors, tmp_path):
    names = ["<b>dog</b>", "cat", None] * 30
    path = write_map(vectors, tmp_path / "map.html", names, title="animal", method="pca")
    page = path.read_text()
    points = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="4" fill="(#\w+)"><title>(.*?)</title>', page)
    assert len(points) == 90
    assert points[0][3] == "0 · animal: &lt;b&gt;dog&lt;/b&gt;"
    assert points[2][3] == "2"
    assert len({colour for _, _, colour, _ in points}) == 3
    assert "<b>" not in page
    assert "<script" not in page
    assert "90 of 90 rows by PCA, coloured by animal" in page


def test_the_picture_is_drawn_of_as_many_as_are_asked_for(vectors, tmp_path, caplog):
    caplog.set_level("INFO", logger="mmcl")
    path = write_map(vectors, tmp_path / "map.png", np.arange(90.0), method="pca", most=40)
    assert Image.open(path).size[0] > 600
    assert "map: 40 of 90 rows, drawn at random" in caplog.text


def test_frequent_names_have_colours_and_numbers_a_scale():
    names = [f"name {number}" for number in range(12) for _ in range(12 - number)]
    colours, legend = colours_of([*names, None])
    assert [name for name, _ in legend] == [*(f"name {number}" for number in range(10)), "other"]
    assert len(set(colours)) == 12
    assert colours[names.index("name 10")] == colours[names.index("name 11")]
    colours, legend = colours_of([0.0, 0.5, 2.0, None])
    assert [name for name, _ in legend] == ["0", "1", "2"]
    assert len(set(colours)) == 4


def test_what_makes_no_map_is_refused(vectors, tmp_path):
    with pytest.raises(MmclError, match=r"name a \.png or \.html file"):
        write_map(vectors, tmp_path / "map.svg")
    with pytest.raises(MmclError, match="2 vectors make no map"):
        write_map(vectors[:2], tmp_path / "map.png")
    with pytest.raises(MmclError, match="3 values for 90 vectors"):
        write_map(vectors, tmp_path / "map.png", [1, 2, 3])
    with pytest.raises(MmclError, match="the method is 'tsne'"):
        write_map(vectors, tmp_path / "map.png", method="tsne")
