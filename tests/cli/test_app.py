"""The command line, as a user meets it: results on stdout, mistakes in one line with exit code 2."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from mmcl.encoding import open_vectors


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Forty images of four plain colours, and a CSV of their paths and captions, as a user has them."""
    folder = tmp_path_factory.mktemp("pairs")
    colours = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}
    rng = np.random.default_rng(0)
    lines = ["path,caption,colour"]
    for number in range(40):
        name, colour = list(colours.items())[number % 4]
        pixels = np.clip(np.array(colour) + rng.normal(0, 12, (40, 48, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,a {name} image,{name}")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def config(pairs):
    """The README's config for one's own pairs, with a network small enough for a test."""
    values = {
        "name": "colours",
        "data": {
            "train": {"source": str(pairs / "pairs.csv")},
            "columns": {"image": "path", "text": "caption"},
            "image": {"size": 32},
        },
        "model": {
            "dim": 16,
            "image": {"name": "timm:resnet10t", "args": {"channels": [8, 8, 8, 8], "stem_width": 8}},
            "text": {"name": "scratch", "layers": 1, "width": 16, "heads": 2, "tokenizer": {"vocab_size": 40}},
        },
        "training": {"epochs": 12, "batch_size": 8, "lr": 3e-3},
        "evaluation": {"sources": {"same": {"source": str(pairs / "pairs.csv")}}},
    }
    path = pairs / "colours.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def run(config, pairs):
    """A trained run, made by the command line in a process of its own."""
    command = [sys.executable, "-m", "mmcl", "train", str(config), "--out", str(pairs / "run")]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "global batch 8, 7 negatives per query" in done.stderr
    return pairs / "run"


def test_from_a_csv_to_search_results(mmcl_, pairs, run, tmp_path):
    assert (run / "report.html").is_file()
    code, out, _ = mmcl_(
        "encode", run, pairs / "pairs.csv", "--column", "path", "--label", "caption", "--out", tmp_path / "v"
    )
    assert code == 0
    assert "40 vectors of 16 dimensions" in out
    assert mmcl_("index", "build", tmp_path / "v", "--out", tmp_path / "index")[0] == 0
    code, out, _ = mmcl_("index", "info", tmp_path / "index", "--json", tmp_path / "info.json")
    assert json.loads((tmp_path / "info.json").read_text())["count"] == 40

    queries = ["a blue image", str(pairs / "1.png")]
    code, out, _ = mmcl_("search", tmp_path / "index", *queries, "-k", 3, "--json", tmp_path / "found.json")
    assert code == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert [hit["label"] for hit in found[queries[0]]] == ["a blue image"] * 3
    assert [hit["label"] for hit in found[queries[1]]] == ["a green image"] * 3
    assert found[queries[1]][0]["id"] == "1"
    assert "a blue image" in out
    code, out, err = mmcl_("search", tmp_path / "index", "no/where.png")
    assert code == 0
    assert "no/where.png: there is no such file, so it is searched as text" in err


def test_vectors_have_the_precision_asked_for_and_are_computed_in_the_dtype(mmcl_, pairs, run, tmp_path):
    def encoded(*options):
        out = tmp_path / "-".join(options)
        code, _, err = mmcl_("encode", run, pairs / "pairs.csv", "--column", "caption", "--out", out, *options)
        assert code == 0, err
        return open_vectors(out)

    single = encoded("--dtype", "float32")
    half = encoded("--dtype", "float32", "--precision", "float16")
    rough = encoded("--dtype", "bfloat16")
    assert [str(vectors.dtype) for vectors in (single, half, rough)] == ["float32", "float16", "float32"]
    exact = single.take(range(40))
    np.testing.assert_allclose(half.take(range(40)), exact, atol=1e-3)
    assert 1e-4 < np.abs(rough.take(range(40)) - exact).max() < 0.05


def test_judging_a_run(mmcl_, pairs, run, tmp_path):
    table = pairs / "pairs.csv"
    columns = ["--image", "path", "--text", "caption"]
    code, out, err = mmcl_("eval", "retrieval", run, table, *columns, "-k", "1,10", "--json", tmp_path / "r.json")
    assert code == 0
    assert re.search("computed in (float32|bfloat16) on ", err)
    scores = json.loads((tmp_path / "r.json").read_text())
    assert scores["image_to_text"]["metrics"]["hit@1"] == 1.0  # equal captions are right answers for each other
    assert scores["text_to_image"]["metrics"]["recall@10"] == 1.0
    assert "text_to_image: 40 queries" in out
    options = ["--label", "colour", "--image", "path", "--template", "a {} image"]
    code, out, _ = mmcl_("eval", "zero-shot", run, table, *options, "--json", tmp_path / "z.json")
    assert code == 0
    assert json.loads((tmp_path / "z.json").read_text())["metrics"]["top@1"] == 1.0
    assert "mean_per_class" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "nowhere.yaml"], "nowhere.yaml: no such config file"),
        (["train", "{config}", "--set", "training.lrr=1"], "unknown key 'training.lrr'; did you mean 'lr'?"),
        (["train", "{config}", "--set", "training.lr=fast"], "'training.lr' is 'fast': input should be a valid number"),
        (["train", "{config}", "--set", "data.train.source=none.csv"], "none.csv: no such file"),
        (["train", "{config}", "--set", "data.train.source={empty}"], "the file is empty"),
        (["train", "{config}", "--set", "data.columns.text=captoin"], "no column 'captoin'"),
        (["train", "{config}", "--set", "model.image.name=timm:resnot18"], "did you mean 'resnet18'"),
        (["train", "{config}", "--set", "model.text.name=./no/model"], "./no/model"),
        (["train", "{config}", "--set", "training.device=tpu"], "device 'tpu'"),
        (["train", "{broken}", "--set", "data.on_error=fail"], "bad.png"),
        (["train", "{csv}"], "pairs.csv: not a config but a table"),
        (["train", "{config}", "--set", "training.learning_rate=1"], "'training.learning_rate'; did you mean 'lr'?"),
        (["search", "{empty}", "a dog"], "index"),
        (["encode", "{run}", "http://127.0.0.1/x.csv", "--out", "{out}"], "only tar shards are read from a URL"),
        (["encode", "no/such/model", "{csv}", "--out", "{out}"], "no such folder"),
        (["eval", "retrieval", "{run}", "{csv}", "--image", "pth"], "did you mean 'path'?"),
        (["eval", "zero-shot", "{run}", "{csv}", "--label", "colour", "--image", "path", "--template", "pic"], "pic"),
        (["data", "get", "emojis"], "did you mean 'emoji'?"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(mmcl_, arguments, said, config, pairs, run, tmp_path):
    (pairs / "empty.csv").touch()
    (pairs / "bad.png").write_bytes(b"\x89PNG nonsense")
    (pairs / "broken.csv").write_text((pairs / "pairs.csv").read_text() + "bad.png,an image,red\n")
    broken = pairs / "broken.yaml"
    broken.write_text(config.read_text().replace("pairs.csv", "broken.csv"))
    places = {"config": config, "empty": pairs / "empty.csv", "csv": pairs / "pairs.csv", "run": run}
    places |= {"broken": broken, "out": tmp_path / "out"}
    filled = [argument.format(**places) for argument in arguments]
    if arguments[0] == "train":
        filled += ["--out", str(tmp_path / "new")]
    code, out, err = mmcl_(*filled)
    assert code == 2
    assert not (tmp_path / "new").exists()
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["encode", "m", "x.csv", "--image", "path"], "No such option: --image (Possible options: --column)"),
        (["encode", "m", "x.csv", "--prompts", "path"], "No such option: --prompts (Possible options: --prompt"),
        (
            ["export", "m", "--to", "sentencetransformers"],
            "Invalid value for '--to': 'sentencetransformers' is not one of 'open-clip', 'transformers', "
            "'sentence-transformers', 'model2vec', 'timm', 'torchvision', 'onnx'. "
            "Did you mean 'sentence-transformers'?",
        ),
    ],
)
def test_an_option_that_is_none_names_the_one_that_is_meant(mmcl_, arguments, said):
    code, _, err = mmcl_(*arguments)
    assert code == 2
    assert said in " ".join(err.split())


def test_a_full_disk_is_said_and_loses_nothing(mmcl_, config, tmp_path, monkeypatch):
    """The second checkpoint finds no space; the first is complete, and the run goes on from it once there is."""
    from safetensors import SafetensorError

    from mmcl.formats import weights

    honest, calls = weights.save_file, []

    def full(tensors, path, metadata):
        calls.append(path)
        if len(calls) > 4:  # what safetensors raises on a disk that is really full
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        honest(tensors, path, metadata)

    settings = ["--set", "training.save_every=5", "--set", "training.epochs=3"]
    monkeypatch.setattr(weights, "save_file", full)
    code, _, err = mmcl_("train", config, "--out", tmp_path / "run", *settings)
    assert code == 2
    assert "the disk is full" in err.splitlines()[-1]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000005"]
    monkeypatch.setattr(weights, "save_file", honest)
    assert mmcl_("train", config, "--out", tmp_path / "run", *settings, "--resume")[0] == 0


def test_an_interrupted_training_says_its_step_and_how_to_go_on(mmcl_, config, tmp_path, monkeypatch):
    from mmcl.training.loop import Trainer

    honest = Trainer._step

    def interrupted(self, taken, step, rate):
        if step == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return honest(self, taken, step, rate)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    settings = ["--set", "training.save_every=5", "--set", "training.epochs=3"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        code, out, err = mmcl_("train", config, "--out", tmp_path / "run", *settings)
    finally:
        signal.signal(signal.SIGINT, before)
    last = err.splitlines()[-1]
    assert (code, out) == (130, "")
    assert last.startswith("interrupted at step 8 of 15; start it again with --resume")
    assert last.endswith("step-00000008")
    assert "Traceback" not in err


def test_an_interrupted_command_says_so(mmcl_, pairs, run, tmp_path, monkeypatch):
    import mmcl.encoding

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(mmcl.encoding, "encode_source", interrupted)
    code, _, err = mmcl_("encode", run, pairs / "pairs.csv", "--column", "caption", "--out", tmp_path / "v")
    assert (code, err.splitlines()[-1]) == (130, "interrupted; what is on disk is complete")


def test_help_needs_no_heavy_library():
    heavy = "{'torch', 'numpy', 'transformers', 'rich', 'pydantic', 'importlib.metadata'}"
    probe = f"import sys, mmcl, mmcl.cli.app; print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_schema_is_json(mmcl_):
    code, out, _ = mmcl_("config", "schema")
    assert code == 0
    assert json.loads(out)["properties"]["training"]
