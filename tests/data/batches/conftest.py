"""A stream of tar shards, and a method that reads it."""

from __future__ import annotations

import pytest

from mmcl.config import load_config
from mmcl.training.build import build_method

from .streams import make_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "train")


@pytest.fixture
def config(shapes_config, shards):
    data = {"train": {"source": str(shards)}, "image": {"size": 32}, "shuffle": 7}
    training = shapes_config["training"] | {"batch_size": 8}
    return shapes_config | {"data": data, "training": training, "evaluation": {}}


@pytest.fixture(scope="session")
def method(tmp_path_factory, shards):
    """Built once: the towers only say what a feed must give."""
    towers = {
        "dim": 8,
        "image": {"name": "timm:resnet10t", "args": {"channels": [4, 4, 4, 4], "stem_width": 4}},
        "text": {"name": "scratch", "layers": 1, "width": 8, "heads": 1, "tokenizer": {"vocab_size": 40}},
    }
    config = load_config({"data": {"train": {"source": str(shards)}, "image": {"size": 32}}, "model": towers})
    return build_method(config, tmp_path_factory.mktemp("method"))
