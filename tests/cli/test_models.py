"""What a config can name is listed, with what other packages register; a tower of one of these trains and is loaded."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

import mmcl
from mmcl.config import load_config
from mmcl.config.evaluation import EVALUATORS
from mmcl.data import samples
from mmcl.data.sources import open_source
from mmcl.formats.towers.image import IMAGE_TOWERS
from mmcl.runtime.errors import MmclError
from mmcl.training import train

TOWER = '''
import torch


class Mean(torch.nn.Module):
    """A linear layer on the colours of a grid of cells."""

    def __init__(self, cells):
        super().__init__()
        self.num_features = 16
        self.pool = torch.nn.AdaptiveAvgPool2d(cells)
        self.layer = torch.nn.Linear(3 * cells * cells, 16)

    def forward(self, pixels):
        return self.layer(self.pool(pixels).flatten(1))


def grid(model, config, size):
    """The colours of a grid of cells, as `grid:CELLS`."""
    return Mean(int(model)), {"name": config.name, "args": config.args, "mean": [0.5] * 3, "std": [0.25] * 3}
'''


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """A package with a tower, and an evaluator that cannot be imported, as pip would install it."""
    info = tmp_path / "grids-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: grids\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text(
        "[mmcl.image_towers]\ngrid = grids_:grid\n[mmcl.evaluators]\ngone = grids_:Gone\n"
    )
    (tmp_path / "grids_.py").write_text(TOWER)
    monkeypatch.syspath_prepend(tmp_path)
    for registry in (IMAGE_TOWERS, EVALUATORS):
        registry.__dict__.pop("plugins", None)
    yield
    for registry in (IMAGE_TOWERS, EVALUATORS):
        registry.__dict__.pop("plugins", None)
        registry._loaded.pop("grid", None)
    sys.modules.pop("grids_", None)


def test_what_a_config_can_name_is_listed_with_the_package_that_it_is_of(mmcl_, plug_in, tmp_path):
    code, out, _ = mmcl_("models", "--json", str(tmp_path / "models.json"))
    assert code == 0
    found = {(entry["kind"], entry["name"]): entry for entry in json.loads((tmp_path / "models.json").read_text())}
    assert {("method", "clip"), ("evaluator", "sts"), ("text tower", "scratch")} <= found.keys()
    assert {name for kind, name in found if kind == "sample"} == {f"sample:{name}" for name in samples.SAMPLES}
    grid = found["image tower", "grid"]
    assert (grid["what"], grid["from"]) == ("The colours of a grid of cells, as `grid:CELLS`.", "grids 0.3")
    assert "cannot be imported" in found["evaluator", "gone"]["what"]
    assert "grids 0.3" in out


def test_a_tower_of_another_package_trains_is_saved_and_is_loaded(plug_in, shapes_config, tmp_path):
    shapes_config["model"]["image"] = {"name": "grid:3"}
    run = train(load_config(shapes_config, ["training.epochs=0.2"]), out=tmp_path / "run")
    images = open_source("sample:shapes", split="dev").images("image", range(4))
    vectors = run.model.encode(images, modality="image")
    np.testing.assert_array_equal(mmcl.load(tmp_path / "run").encode(images, modality="image"), vectors)
    with pytest.raises(MmclError, match=r"expected 'timm:NAME', .*'transformers:NAME' or 'grid:NAME'"):
        train(load_config(shapes_config, ["model.image.name=gird:3"]), out=tmp_path / "other")
