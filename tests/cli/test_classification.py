"""mmcl eval knn, linear-probe and few-shot, as a user meets it, with a model that needs no training."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import mmcl

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (128, 128, 128)}


class MeanColour:
    """An image's vector is its mean colour; ``blind`` sees its brightness only."""

    modalities = frozenset({"image"})
    compute, device = "float32", torch.device("cpu")

    def __init__(self, blind: bool) -> None:
        self._blind = blind

    def encode(self, inputs, normalize=True):
        means = np.stack([np.asarray(image, dtype=np.float32).mean((0, 1)) / 255 - 0.4 for image in inputs])
        return means[:, :1].repeat(2, 1) if self._blind else means


@pytest.fixture
def evaluate(monkeypatch, mmcl_):
    """Run ``mmcl eval``; gives (exit code, stdout, stderr). The models are called good and blind."""
    monkeypatch.setattr(mmcl, "load", lambda name, **options: MeanColour(blind=name == "blind"), raising=False)
    return lambda *arguments: mmcl_("eval", *arguments)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of images by class: 60 to learn from, 24 to judge on, of which one is no image."""
    folder, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for part, count in (("train", 15), ("test", 6)):
        for name, colour in COLOURS.items():
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(np.array(colour) + rng.normal(0, 30, (8, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    (folder / "test" / "red" / "0.png").write_bytes(b"no image")
    return folder


def test_knn_of_folders_by_class(evaluate, folders, tmp_path):
    sources = ["--train", folders / "train", "--test", folders / "test"]
    file = tmp_path / "knn.json"
    code, out, err = evaluate("knn", "good", *sources, "--k", "5,20", "--temperature", "0.07", "--json", file)
    assert code == 0, err
    saved = json.loads(file.read_text())
    assert list(saved) == ["k=5 temperature=0.07", "k=20 temperature=0.07"]
    first = saved["k=5 temperature=0.07"]
    assert (first["metrics"]["top@1"], first["images"], first["classes"], first["train"]) == (1.0, 23, 4, 60)
    assert first["intervals"]["top@1"] == [1.0, 1.0]
    assert "kNN: 23 images, 4 classes, by the votes of 60 training images" in out
    assert "1 of 24 rows left out: an unreadable image or no label" in err


def test_a_linear_probe_of_folders_by_class(evaluate, folders, tmp_path):
    sources = ["--train", folders / "train", "--test", folders / "test"]
    code, out, err = evaluate("linear-probe", "good", *sources, "--json", tmp_path / "probe.json")
    assert code == 0, err
    saved = json.loads((tmp_path / "probe.json").read_text())["linear_probe"]
    assert saved["metrics"]["top@1"] == 1.0
    assert min(saved["validation"], key=saved["validation"].get) == f"{saved['l2']:.3g}"
    assert "linear probe: 23 images, 4 classes, 60 training images" in out
    assert "(chosen on training rows)" in out
    code, out, _ = evaluate("linear-probe", "blind", *sources, "--l2", 0.5)
    assert code == 0
    assert "l2 0.5 (fixed)" in out


def test_few_labels_of_folders_by_class(evaluate, folders, tmp_path):
    sources = ["--train", folders / "train", "--test", folders / "test"]
    options = ["--fraction", "0.01,0.5", "--seeds", 3, "--json", tmp_path / "few.json"]
    code, out, err = evaluate("few-shot", "good", *sources, *options)
    assert code == 0, err
    saved = json.loads((tmp_path / "few.json").read_text())
    assert [(name, scores["train"], len(scores["draws"])) for name, scores in saved.items()] == [
        ("1%", 4, 3),
        ("50%", 32, 3),
    ]
    assert saved["50%"]["metrics"]["top@1"] == 1.0
    assert "few-shot by linear probe: 23 images, 4 classes, mean of 3 draws" in out
    code, out, _ = evaluate("few-shot", "good", *sources, "--fraction", "0.5", "--seeds", 1)
    assert "4 classes, one draw" in out
    assert "0.0000" not in out  # of a single draw nothing is known of how draws differ
    code, _, err = evaluate("few-shot", "good", *sources, "--fraction", "10")
    assert code == 2
    assert "the fraction 10 is no share of the labels" in err


def test_two_models_are_compared_by_their_files(evaluate, folders, tmp_path):
    sources = ["--train", folders / "train", "--test", folders / "test", "--k", 10]
    for model in ("blind", "good"):
        assert evaluate("knn", model, *sources, "--json", tmp_path / f"{model}.json", "--per-query")[0] == 0
    code, out, _ = evaluate("compare", tmp_path / "blind.json", tmp_path / "good.json", "--resamples", 1000)
    assert code == 0
    assert "B is ahead beyond the interval on k=10 temperature=0.1/top@1" in out


def test_images_that_were_learned_from_are_warned_of(evaluate, folders):
    code, _, err = evaluate("knn", "good", "--train", folders / "train", "--test", folders / "train", "--k", 5)
    assert code == 0
    assert "the images of 60 of 60 rows stand in" in err


@pytest.mark.parametrize(
    ("command", "option", "message"),
    [
        ("knn", ["--k", "0"], "k is 0"),
        ("knn", ["--temperature", "0"], "the temperature is 0"),
        ("linear-probe", ["--l2", "0"], "l2 is 0"),
        ("few-shot", ["--fraction", "2"], "the fraction 2 is no share"),
    ],
)
def test_a_setting_is_refused_before_anything_is_embedded(evaluate, folders, monkeypatch, command, option, message):
    monkeypatch.setattr(MeanColour, "encode", None)
    code, _, err = evaluate(command, "good", "--train", folders / "train", "--test", folders / "test", *option)
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k", "many"], "--k many: expected a number, or several between commas"),
        (["--k", "0"], "k is 0; give a number of neighbours from 1 up"),
        (["--label", "kind"], "no column 'kind'"),
        (["--per-query"], "--per-query needs --json"),
    ],
)
def test_mistakes_end_in_one_line(evaluate, folders, options, message):
    code, out, err = evaluate("knn", "good", "--train", folders / "train", "--test", folders / "test", *options)
    assert (code, out) == (2, "")
    assert message in err
