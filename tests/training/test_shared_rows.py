"""Training warns of evaluations on the rows that it learns from, however the images are stored."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from mmcl.config.load import load_config
from mmcl.training.check_config import check_config
from mmcl.training.loop import Trainer

ROWS = 12


@pytest.fixture
def photographs(tmp_path):
    """Two tables of images that are longer than wide: the second has copies of the first three of them in files of
    another format, beside new ones. None is as small as the square that a tower of 32 pixels sees."""
    draw = np.random.default_rng(0).integers
    images = [Image.fromarray(draw(0, 255, (60, 90, 3), dtype=np.uint8)) for _ in range(2 * ROWS - 3)]
    tables = {"train": (images[:ROWS], "png"), "test": (images[:3] + images[ROWS:], "bmp")}
    for name, (chosen, suffix) in tables.items():
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "text"])
            for number, image in enumerate(chosen):
                image.save(tmp_path / f"{name}-{number}.{suffix}")
                writer.writerow([f"{name}-{number}.{suffix}", f"a photograph called {name} {number}"])
    return tmp_path


@pytest.fixture
def config(photographs, shapes_config):
    sources = {name: {"source": str(photographs / f"{file}.csv")} for name, file in (("dev", "train"), ("new", "test"))}
    data = {"train": {"source": str(photographs / "train.csv")}, "image": {"size": 32}}
    training = {"batch_size": 4, "epochs": 1, "device": "cpu"}
    return shapes_config | {"data": data, "training": training, "evaluation": {"sources": sources}}


@pytest.mark.parametrize("crops", [[0.3, 1.0], [1.0, 1.0]])
@pytest.mark.parametrize("stored", [None, "square", 40])
def test_images_that_are_learned_from_are_warned_of(tmp_path, config, caplog, crops, stored):
    config["data"]["image"]["stored"] = stored
    changed = load_config(config | {"augmentation": {"crop_scale": crops}})
    Trainer(changed, tmp_path / "run", resume=False)
    assert f"evaluation.sources.dev: {ROWS} of {ROWS} rows" in caplog.text
    assert f"evaluation.sources.new: 3 of {ROWS} rows" in caplog.text, "the same pixels, in other files"
    assert "decoded again whenever they are used" not in caplog.text


def test_a_check_of_the_config_warns_as_well(config, caplog):
    check_config(load_config(config | {"augmentation": {"crop_scale": [0.3, 1.0]}}))
    assert f"evaluation.sources.dev: {ROWS} of {ROWS} rows" in caplog.text
