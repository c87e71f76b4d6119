"""The examples run as they are, and come to what they promise."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    def run(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_own_pairs_finds_images_by_words(run):
    found = run("own_pairs.py")
    assert len(found) == 3
    assert all(line.endswith(".png") for line in found)


def test_own_pairs_takes_the_images_that_a_table_names(run, tmp_path):
    (tmp_path / "photos").mkdir()
    lines = ["path,caption"]
    for number in range(48):
        Image.new("RGB", (40, 40), (5 * number, 0, 0)).save(tmp_path / "photos" / f"red-{number}.jpg")
        lines.append(f"photos/red-{number}.jpg,a red of {number}")
    Image.new("RGB", (40, 40)).save(tmp_path / "other.png")
    (tmp_path / "pairs.csv").write_text("\n".join([*lines, f"{lines[1]} once more"]))
    found = [line.split()[-1] for line in run("own_pairs.py", "pairs.csv")]
    assert len(set(found)) == 3
    assert all((tmp_path / name).is_file() and name.startswith("photos/red-") for name in found)


def test_sentences_finds_the_question_that_means_the_same(run):
    answer, spearman = run("sentences.py")
    assert answer == "How do I reset my password?"
    name, _, value = spearman.rpartition(" ")
    assert name == "STS-B, Spearman:"
    assert float(value) == pytest.approx(82.03, abs=0.05)  # in bfloat16, where that is native


def test_own_loss_falls_and_the_model_is_saved(run, tmp_path):
    losses = [float(line.split()[-1]) for line in run("own_loss.py")]
    assert losses[-1] < losses[0]
    assert (tmp_path / "runs" / "own_loss" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["search_images.ipynb", "judge.ipynb"])
def test_a_notebook_runs_from_top_to_bottom(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / name).read_text())["cells"]
    variables = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}, {cell['id']}", "exec"), variables)
    printed = capsys.readouterr().out
    if name == "judge.ipynb":
        assert "384 is ahead beyond the interval" in printed
    else:
        assert variables["index"].search(variables["encoder"].encode(variables["images"][7]), k=1)[0] == [[7]]


def test_a_package_of_ones_own_adds_a_method_a_tower_and_an_evaluator(tmp_path):
    site = tmp_path / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(site),
    ]
    subprocess.run([*pip, str(copytree(EXAMPLES / "plugin", tmp_path / "plugin"))], check=True)
    config = {
        "name": "mine",
        "method": {"name": "spectral", "weight": 0.5},
        "data": {"train": {"source": "sample:shapes", "split": "dev"}, "image": {"size": 32}},
        "model": {"dim": 16, "image": {"name": "patches:8", "args": {"width": 16}}},
        "augmentation": {"crop_scale": [0.5, 1.0]},
        "training": {"epochs": 2, "batch_size": 50, "lr": 1e-2, "log_every": 1},
        "evaluation": {
            "sources": {"dev": {"task": "effective_rank", "source": "sample:shapes", "split": "dev", "rows": 64}},
            "best": "dev/effective_rank",
        },
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(config))

    def mmcl(*words):
        path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "mmcl", *words]
        done = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr

    assert all(name in mmcl("models")[1] for name in ("spectral", "patches", "bag", "effective_rank"))
    schema = mmcl("config", "schema")[1]
    assert "Of the repulsion of different images." in schema
    assert "The first so many rows." in schema
    code, _, said = mmcl("train", "mine.yaml", "--set", "method.weigth=2")
    assert code == 2
    assert "weight" in said
    code, stdout, said = mmcl("train", "mine.yaml")
    assert code == 0, said
    assert "effective_rank" in stdout
    lines = [json.loads(line) for line in (tmp_path / "runs" / "mine" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    code, _, said = mmcl("encode", "runs/mine", "sample:shapes", "--split", "test", "--out", "vectors")
    assert code == 0, said
