"""What many tests need: a cache of their own, and a small data set; and hardware that this machine may not have."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import pytest

if os.environ.get("MMCL_TEST_NATIVE_BFLOAT16") == "1":
    # As on a CPU with AMX, `precision: auto` is bfloat16 here, and in the processes that tests start.
    units = Path(__file__).parent / "native_bfloat16"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(units), os.environ.get("PYTHONPATH")]))
    runpy.run_path(str(units / "sitecustomize.py"))

os.environ["HF_HUB_OFFLINE"] = "1"
# A worker a core: more threads would only wait for each other.
ONE_THREAD = "PYTEST_XDIST_WORKER" in os.environ and "OMP_NUM_THREADS" not in os.environ
if ONE_THREAD:
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """Datasets, pixels and tokens of the tests are cached apart from the user's; wheels are not fetched twice."""
    from mmcl.runtime.files import cache_dir

    wheels = cache_dir("wheels")
    folder = tmp_path_factory.mktemp("cache")
    (folder / "wheels").symlink_to(wheels, target_is_directory=True)
    os.environ["MMCL_CACHE"] = str(folder)


@pytest.fixture
def all_cores(monkeypatch):
    """The commands that a slow test starts use all cores: it outlasts the other workers, which then are idle."""
    if ONE_THREAD:
        monkeypatch.delenv("OMP_NUM_THREADS")


@pytest.fixture
def shapes_config():
    """A config on the drawn sample `shapes`: seconds to train, and it learns."""
    return {
        "name": "shapes",
        "data": {"train": {"source": "sample:shapes", "split": "train"}, "image": {"size": 32}},
        "model": {
            "dim": 64,
            "image": {
                "name": "timm:resnet10t",
                "args": {"channels": [16, 32, 48, 64], "stem_width": 16, "drop_path_rate": 0.1},
            },
            "text": {"name": "scratch", "layers": 1, "width": 32, "heads": 2, "tokenizer": {"vocab_size": 100}},
        },
        "augmentation": {"crop_scale": [0.8, 1.0]},
        "training": {"epochs": 1, "batch_size": 64, "lr": 2e-3, "log_every": 2, "save_every": 3},
        "evaluation": {"sources": {"dev": {"source": "sample:shapes", "split": "dev"}}},
    }
