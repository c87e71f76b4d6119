"""mmcl eval threshold, as a user meets it, with a model that mmcl wrote."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mmcl
from mmcl.formats.threshold import read_threshold


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """800 pairs of sentences that share up to six words, graded 0 to 5, and a catalogue with duplicates."""
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    words = [f"w{number}" for number in range(80)]
    pairs, items = ["sentence1\tsentence2\tscore"], ["title,product"]
    for row in range(800):
        first, common = rng.choice(words, 6, replace=False), rng.integers(0, 7)
        second = np.concatenate([first[:common], rng.choice(words, 6 - common)])
        score = np.clip(common * 5 / 6 + rng.normal(0, 0.3), 0, 5)
        pairs.append(f"{' '.join(first)}\t{' '.join(second)}\t{score:.1f}")
        items += [f"{' '.join(first)},{row}", f"{' '.join(first[::-1])},{row}"]
    (folder / "pairs.tsv").write_text("\n".join(pairs) + "\n")
    (folder / "items.csv").write_text("\n".join(items) + "\n")
    return folder


class Words:
    """Counts words; texts that share words are alike. Opened from ``path``."""

    modalities = frozenset({"text"})
    compute, device, towers = "float32", torch.device("cpu"), SimpleNamespace(resolve=lambda modality: modality)

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def encode(self, texts, **options):
        vectors = np.zeros((len(texts), 500), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.split():
                vectors[row, zlib.crc32(word.encode()) % 500] += 1
        return vectors + 1e-3 * vectors.mean(1, keepdims=True)

    def fingerprint(self):
        return {"weights": "abc", "prompt": ""}


@pytest.fixture
def evaluate(monkeypatch, mmcl_, tmp_path):
    """Run ``mmcl eval threshold``: of ``model``, a folder that mmcl wrote, or of ``elsewhere``, one that it did not."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mmcl.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mmcl, "load", lambda name, **options: Words(Path(name)), raising=False)
    return lambda *arguments: mmcl_("eval", "threshold", *arguments)


def test_a_table_is_printed_and_the_threshold_kept_with_the_model(evaluate, folder, tmp_path):
    options = ["--same-from", 4, "--precision", 0.9, "--precision", 0.999, "--json", tmp_path / "t.json"]
    code, out, _ = evaluate("model", folder / "pairs.tsv", *options)
    assert code == 0
    saved = json.loads((tmp_path / "t.json").read_text())
    first, unreached, best = saved["cuts"]
    assert (first["asked"], unreached["asked"], best["asked"]) == (0.9, 0.999, None)
    kept = read_threshold("model")
    assert (kept.above(0.9), kept.above()) == (first["threshold"], best["threshold"])
    assert f"kept in {Path('model/threshold.json')}" in out
    row = next(line for line in out.splitlines() if "precision 0.9 " in line)
    low, high = first["intervals"]["precision"]
    assert f"{first['threshold']:.6g}" in row
    assert f"{first['precision']:.3f}" in row
    assert f"{low:.3f} – {high:.3f}" in row
    assert f"precision 0.999: no threshold, since {unreached['reason']}" in " ".join(out.split())
    assert f"calibration error {saved['calibration']['error']:.3f} on pairs left out" in out
    assert max(len(line) for line in out.splitlines() if line.startswith(" ")) <= 100
    assert "## Match threshold" in (tmp_path / "model" / "README.md").read_text()


def test_a_model_from_elsewhere_is_measured_and_left_as_it_is(evaluate, folder, tmp_path):
    code, out, _ = evaluate("elsewhere", folder / "pairs.tsv", "--same-from", 4)
    assert code == 0
    assert "not kept: elsewhere is no folder that mmcl wrote" in out
    assert evaluate("model", folder / "pairs.tsv", "--same-from", 4, "--no-keep")[0] == 0
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["mmcl.json"]


def test_duplicates_of_a_catalogue_serve_without_labelled_pairs(evaluate, folder, tmp_path):
    options = ["--duplicates", "product", "--column", "title", "--precision", 0.9, "--json", tmp_path / "t.json"]
    code, out, _ = evaluate("model", folder / "items.csv", *options, "--negatives", 200_000)
    assert code == 0
    saved = json.loads((tmp_path / "t.json").read_text())
    assert saved["same"] == 800
    assert saved["prevalence"] == pytest.approx(1 / 1599)
    assert saved["cuts"][0]["precision"] > 0.85
    assert "all of it where 0.06% of the pairs are the same" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{}/pairs.tsv"], "say from which on a pair is the same: --same-from 4"),
        (["{}/pairs.tsv", "--same-from", "9"], "pairs are different; give some of both kinds"),
        (["{}/pairs.tsv", "--same-from", "4", "--precision", "95"], "precision is 95; it lies between 0 and 1"),
        (["{}/pairs.tsv", "--pairs", "sentence1", "--same-from", "4"], "--pairs sentence1: expected two columns"),
        (["{}/items.csv", "--same-from", "4"], "name another with --pairs"),
        (["{}/items.csv", "--duplicates", "produkt", "--column", "title"], "did you mean 'product'?"),
        (["{}/items.csv", "--duplicates", "title", "--column", "title"], "no two of them are the same"),
    ],
)
def test_mistakes_get_one_line(evaluate, folder, arguments, said):
    code, out, err = evaluate("model", *(argument.format(folder) for argument in arguments))
    assert code == 2
    assert said in err.strip().splitlines()[-1]
    assert out == ""
