"""mmcl eval, as a user meets it, with a model that needs no training."""

from __future__ import annotations

import json
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

import mmcl
from mmcl.cli.app import main

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}


class Untrained:
    """Average colour as the picture's vector; a text's is random, or near that of the colour it names."""

    def __init__(self, blind: bool) -> None:
        self._blind = blind

    def to(self, device):
        return self

    def encode(self, inputs):
        return np.stack([self._text(item) if isinstance(item, str) else self._image(item) for item in inputs])

    def _image(self, picture):
        return np.asarray(picture, dtype=np.float32).mean((0, 1)) / 255 - 0.4

    def _text(self, text):
        noise = np.random.default_rng(zlib.crc32(text.encode())).standard_normal(3).astype(np.float32)
        named = [rgb for name, rgb in COLOURS.items() if name in text]
        if self._blind or not named:
            return noise
        return np.array(named[0], dtype=np.float32) / 255 - 0.4 + noise * (0.2 if "number" in text else 0)


@pytest.fixture
def mmcl_(monkeypatch, capsys):
    """Run ``mmcl eval`` in this process; gives (exit code, stdout, stderr). The models are called good and blind."""
    monkeypatch.setattr(mmcl, "load", lambda name: Untrained(blind=name == "blind"), raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mmcl", "eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return run


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Forty pictures of four colours, with two captions each in a JSON lines file."""
    folder, rng, lines = tmp_path_factory.mktemp("colours"), np.random.default_rng(0), []
    for row in range(40):
        name, colour = list(COLOURS.items())[row % 4]
        pixels = np.clip(np.array(colour) + rng.normal(0, 12, (8, 8, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{row}.png")
        captions = [f"a {name} picture", f"something {name}, number {row}"]
        lines.append(json.dumps({"image": f"{row}.png", "text": captions, "colour": name, "number": row % 4}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    (folder / "classes.txt").write_text("red\ngreen\nblue\nwhite\n")
    (folder / "prompts.txt").write_text("a {} picture\nsomething {}\n")
    return folder


def test_retrieval_shows_clip_benchmarks_names_and_numbers(mmcl_, table, tmp_path):
    code, out, _ = mmcl_("retrieval", "good", table / "rows.jsonl", "-k", "1,10", "--json", tmp_path / "r.json")
    assert code == 0
    saved = json.loads((tmp_path / "r.json").read_text())
    assert saved["image_to_text"]["metrics"]["hit@1"] == 1.0
    names = {f"{what}_retrieval_recall@{k}" for what in ("image", "text") for k in (1, 10)}
    assert set(saved["clip_benchmark"]) == names
    assert saved["clip_benchmark"]["image_retrieval_recall@1"] < 0.5  # equal captions are wrong answers there
    assert "per_query" not in saved["image_to_text"]
    assert f"text_retrieval_recall@1 {saved['clip_benchmark']['text_retrieval_recall@1']:.4f}" in out


def test_zero_shot_by_numbers_and_templates_from_a_file(mmcl_, table, tmp_path):
    options = ["--label", "number", "--classes", table / "classes.txt", "--template", table / "prompts.txt"]
    code, out, _ = mmcl_(
        "zero-shot", "good", table / "rows.jsonl", *options, "--template", "{}", "--json", tmp_path / "z"
    )
    assert code == 0
    saved = json.loads((tmp_path / "z").read_text())
    assert saved["metrics"]["top@1"] == saved["clip_benchmark"]["acc1"] == 1.0
    assert saved["per_class"] == {"red": 1.0, "green": 1.0, "blue": 1.0, "white": 1.0}
    assert "mean_per_class_recall" in out
    assert "40 pictures, 4 classes" in out


def test_diagnostics_of_one_column_or_two(mmcl_, table, tmp_path):
    code, out, _ = mmcl_("diagnostics", "good", table / "rows.jsonl", "--json", tmp_path / "d.json")
    assert code == 0
    saved = json.loads((tmp_path / "d.json").read_text())
    assert (saved["image"]["rows"], saved["text"]["rows"], saved["collapsed"]) == (40, 80, [])
    assert "modality_gap" in out
    assert "no sign of collapse" in out
    code, out, _ = mmcl_("diagnostics", "good", table / "rows.jsonl", "--image", "image")
    assert code == 0
    assert "modality_gap" not in out


def test_two_models_are_compared_directly_or_from_files(mmcl_, table, tmp_path):
    rows = table / "rows.jsonl"
    code, out, _ = mmcl_("compare", "blind", "good", rows, "-k", 1, "--json", tmp_path / "c.json", "--resamples", 2000)
    assert code == 0
    assert "B is ahead beyond the interval on " in out
    assert "text_to_image/mrr" in out
    assert "80 queries of 40 pictures" in out
    direct = json.loads((tmp_path / "c.json").read_text())
    for model in ("blind", "good"):
        assert mmcl_("retrieval", model, rows, "-k", 1, "--json", tmp_path / f"{model}.json", "--per-query")[0] == 0
    files = [tmp_path / "blind.json", tmp_path / "good.json"]
    assert mmcl_("compare", *files, "--json", tmp_path / "f.json", "--resamples", 2000)[0] == 0
    assert json.loads((tmp_path / "f.json").read_text())["metrics"] == direct["metrics"]
    code, out, _ = mmcl_("compare", "blind", "good", rows, "--label", "colour")
    assert code == 0
    assert "B is ahead beyond the interval on zero_shot/top@1, zero_shot/mean_per_class" in out
    assert "hit@1" not in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["retrieval", "good", "{rows}", "--per-query"], "--per-query needs --json FILE"),
        (["retrieval", "good", "{rows}", "-k", "one"], "expected cut-offs like 1,5,10"),
        (["zero-shot", "good", "{rows}", "--label", "number", "--classes", "imagnet"], "'imagnet': no such file"),
        (["zero-shot", "good", "{rows}", "--label", "colour", "--template", "opnai"], "did you mean 'openai'?"),
        (["compare", "good", "blind"], "name a source to judge both models on, or give two .json files"),
        (["compare", "{rows}/a.json", "b.json"], "no such file"),
        (
            ["compare", "good", "blind", "{rows}", "--metric", "hit@2"],
            "no metric 'hit@2' was measured; did you mean 'hit@",
        ),
        (["diagnostics", "good", "{rows}", "--text", "colours"], "did you mean 'colour'?"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(mmcl_, arguments, said, table):
    code, out, err = mmcl_(*(argument.format(rows=table / "rows.jsonl") for argument in arguments))
    assert code == 2
    assert said in err.strip().splitlines()[-1]
    assert out == ""


def test_karpathys_json_is_judged_as_it_is(mmcl_, table, tmp_path):
    """Five captions a picture, of which any is a right answer; only the pictures of the split are searched."""
    images = [
        {
            "filename": f"{row}.png",
            "imgid": row,
            "split": "test" if row < 12 else "train",
            "sentences": [{"raw": f"{list(COLOURS)[row % 4]} number {row}, {what}"} for what in "vwxyz"],
        }
        for row in range(40)
    ]
    dataset = table / "dataset_colours.json"
    dataset.write_text(json.dumps({"dataset": "colours", "images": images}))
    code, _, _ = mmcl_("retrieval", "good", dataset, "--split", "test", "--json", tmp_path / "k.json", "-k", "1,5")
    assert code == 0
    saved = json.loads((tmp_path / "k.json").read_text())
    assert (saved["image_to_text"]["queries"], saved["image_to_text"]["corpus"]) == (12, 60)
    assert (saved["text_to_image"]["queries"], saved["text_to_image"]["corpus"]) == (60, 12)
    assert saved["image_to_text"]["chance"]["recall@5"] == pytest.approx(5 / 60)
    for way, what in (("image_to_text", "text"), ("text_to_image", "image")):  # no caption stands twice
        for k in (1, 5):
            assert saved["clip_benchmark"][f"{what}_retrieval_recall@{k}"] == saved[way]["metrics"][f"hit@{k}"]
