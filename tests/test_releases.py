"""What an earlier version wrote, this one reads.

``releases/VERSION.tar.xz`` holds runs with a checkpoint, model folders, vectors and an index as that version left them,
and what it computed from them.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import mmcl
from mmcl.data.sources import open_source
from mmcl.training import Run

RELEASES = sorted((Path(__file__).parent / "releases").glob("*.tar.xz"))
NEAR = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module", params=RELEASES, ids=lambda path: path.name.removesuffix(".tar.xz"))
def release(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    with tarfile.open(request.param) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def expected(release):
    return json.loads((release / "expected.json").read_text())


@pytest.mark.parametrize("run", ["words", "shapes"])
def test_a_model_gives_the_vectors_that_it_gave(release, expected, run):
    encoder = mmcl.load(release / run, dtype="float32")
    np.testing.assert_allclose(encoder.encode(expected[run]["texts"]), expected[run]["text"], **NEAR)
    assert list(encoder.towers.heads) == (["projector"] if run == "words" else [])
    if "image" in expected[run]:
        images = [release / f"image-{number}.png" for number in range(3)]
        np.testing.assert_allclose(encoder.encode(images), expected[run]["image"], **NEAR)


@pytest.mark.parametrize(
    ("run", "source", "split"), [("words", "words.jsonl", None), ("shapes", "sample:shapes", "dev")]
)
def test_a_run_goes_on_from_its_checkpoint_to_the_weights_that_it_had(release, run, source, split, monkeypatch):
    monkeypatch.chdir(release)  # its config names the rows from there
    rows = open_source(source, split=split)
    (state,) = (release / run / "checkpoints").glob("*/state.json")
    # A source is known by the path and the time of its file, which are others here.
    state.write_text(json.dumps(json.loads(state.read_text()) | {"data": f"{rows.fingerprint}-{len(rows)}"}))
    config = release / run / "config.yaml"
    resumed = mmcl.train(config, out=release / run, resume=True)
    weights = load_file(resumed.folder / "model" / "model.safetensors")
    with np.load(release / f"{run}-weights.npz") as before:
        assert weights.keys() == set(before)
        for name in before:
            # Dropout draws other masks than it did, and each of the steps moves a weight by up to 3e-3.
            np.testing.assert_allclose(weights[name], before[name], rtol=5e-3, atol=5e-3, err_msg=name)


def test_vectors_and_an_index_are_as_they_were(release, expected):
    stored = mmcl.encoding.open_vectors(release / "vectors")
    vectors = stored.take(range(len(stored)))
    np.testing.assert_array_equal(vectors, np.asarray(expected["vectors"], dtype=np.float32))
    ids, scores = mmcl.Index.load(release / "index").search(vectors[:3], k=3)
    assert ids.tolist() == expected["index"]["ids"]
    np.testing.assert_allclose(scores, expected["index"]["scores"], **NEAR)


def test_a_run_goes_on_with_the_squares_that_it_cropped(release):
    assert Run(release / "shapes").config.data.image.stored == "square"
