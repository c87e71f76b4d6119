"""mmcl vectors, as it is typed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmcl.encoding import VectorWriter

ROWS = np.random.default_rng(0).normal(size=(25, 8)).astype("float32")


@pytest.fixture
def folder(tmp_path):
    with VectorWriter(tmp_path / "v", dim=8, model="some-model", source={"name": "a.csv"}) as writer:
        writer.append([f"r{n}" for n in range(25)], ROWS)
    return tmp_path / "v"


def test_info_and_verify_say_and_write_what_was_found(folder, tmp_path, mmcl_):
    code, out, _ = mmcl_("vectors", "info", folder, "--json", tmp_path / "info.json")
    assert code == 0
    assert "some-model" in out
    assert json.loads((tmp_path / "info.json").read_text())["vectors"] == 25
    code, out, _ = mmcl_("vectors", "verify", folder, "--json", tmp_path / "verify.json")
    assert code == 0
    assert "25 vectors of 8 dimensions, all read, all finite" in out
    assert json.loads((tmp_path / "verify.json").read_text())["duplicates"] == 0


def test_exported_vectors_are_indexed_as_they_are(folder, tmp_path, mmcl_):
    code, out, _ = mmcl_("vectors", "export", folder, "--to", "parquet", "--out", tmp_path / "x.parquet")
    assert (code, "25 vectors of 8 dimensions" in out) == (0, True)
    code, out, _ = mmcl_("index", "build", tmp_path / "x.parquet", "--out", tmp_path / "index")
    assert code == 0
    assert "some-model" in out


def test_mistakes_are_one_line(folder, tmp_path, mmcl_):
    code, out, err = mmcl_("vectors", "export", folder, "--to", "npy", "--out", folder)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    code, _, err = mmcl_("vectors", "info", tmp_path / "nowhere")
    assert (code, len(err.splitlines())) == (2, 1)
