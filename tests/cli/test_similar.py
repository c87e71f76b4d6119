"""The commands mine, dedup and cluster: from a model and a source to files."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
import torch

from mmcl.config.model import HeadConfig, TextTowerConfig, TokenizerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.encoding.encoder import Encoder
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.towers import Towers

TEXTS = [f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("dog", "car", "tree", "bird")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, pairs, and a corpus in which two texts come twice, the second time with more likes."""
    folder = tmp_path_factory.mktemp("similar")
    torch.manual_seed(0)
    processor, tower = build_text_tower(
        TextTowerConfig(layers=1, width=16, heads=2), train_tokenizer(TEXTS, TokenizerConfig(vocab_size=60), 20)
    )
    Encoder(Towers({"text": TextEmbedder(processor, tower, Head(HeadConfig(), 16, 8))}, 8, "tiny")).save(
        folder / "model"
    )
    pairs = [{"anchor": f"what is {text}", "positive": text} for text in TEXTS]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    corpus = [
        {"id": f"t{n}", "text": text, "likes": n, "kind": text.split()[2]}
        for n, text in enumerate([*TEXTS, *TEXTS[:2]])
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    return folder


def numbers(mmcl_, tmp_path, *arguments):
    code, out, err = mmcl_(*arguments, "--json", tmp_path / "numbers.json", "--dtype", "float32")
    assert code == 0, err
    return json.loads((tmp_path / "numbers.json").read_text()), out


def test_mine_writes_negatives_from_a_window(mmcl_, folder, tmp_path):
    out = tmp_path / "out.jsonl"
    found, shown = numbers(
        mmcl_, tmp_path, "mine", folder / "model", folder / "pairs.jsonl", "--out", out, "--count", 2, "--range", 1, 11,
        "--duplicate-score", 1.1,
    )  # fmt: skip
    assert (found["written"], found["negatives"], found["too_few"]) == (12, 24, 0)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert all({line["negative"], line["negative_2"]} <= set(TEXTS) - {line["positive"]} for line in lines)
    assert "mean cosine of negatives" in shown
    code, _, err = mmcl_("mine", folder / "model", folder / "corpus.jsonl", "--out", out)
    assert (code, "name them with --anchor and --positive" in err) == (2, True)


def test_mine_writes_paraphrases(mmcl_, folder, tmp_path):
    found, shown = numbers(
        mmcl_, tmp_path, "mine", folder / "model", folder / "corpus.jsonl", "--paraphrases", "--pairs", 5,
        "--out", tmp_path / "out.parquet",
    )  # fmt: skip
    assert (found["rows"], found["distinct"], found["pairs"]) == (14, 12, 5)
    assert "5 pairs of 12 distinct texts" in shown
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 5


def test_dedup_encodes_and_keeps_the_row_with_the_highest_value(mmcl_, folder, tmp_path):
    arguments = ("dedup", folder / "model", folder / "corpus.jsonl", "--threshold", 0.9999, "--out", tmp_path / "out")
    found, shown = numbers(mmcl_, tmp_path, *arguments)
    assert (found["rows"], found["pairs"], found["clusters"], found["kept"]) == (14, 2, 2, 12)
    assert "a red dog" in shown
    found, _ = numbers(mmcl_, tmp_path, *arguments, "--keep", "likes")
    kept = pq.read_table(tmp_path / "out" / "kept.parquet")["id"].to_pylist()
    assert kept == [f"t{number}" for number in range(2, 14)]
    vectors = tmp_path / "out" / "vectors"
    numbers(mmcl_, tmp_path, "dedup", vectors, "--out", tmp_path / "rows", "--keep", "likes", "--rows", arguments[2],
            "--threshold", 0.9999)  # fmt: skip
    assert pq.read_table(tmp_path / "rows" / "kept.parquet")["id"].to_pylist() == kept
    code, _, err = mmcl_("dedup", vectors, "--out", tmp_path / "again", "--threshold", 1.2)
    assert (code, "threshold 1.2: a cosine" in err) == (2, True)
    code, _, err = mmcl_("dedup", vectors, "--out", tmp_path / "again", "--keep", "hates")
    assert (code, "no column 'hates'" in err) == (2, True)
    found, _ = numbers(mmcl_, tmp_path, "dedup", vectors, "--out", tmp_path / "leak", "--against", vectors)
    assert (found["kept"], found["against"], found["clusters"]) == (0, 14, None)


def test_cluster_shows_central_rows_and_draws_a_map(mmcl_, folder, tmp_path):
    arguments = ("cluster", folder / "model", folder / "corpus.jsonl", "--out", tmp_path / "out")
    found, shown = numbers(
        mmcl_, tmp_path, *arguments, "-k", 3, "--map", tmp_path / "map.html", "--color", "kind", "--map-method", "pca"
    )
    assert sum(each["size"] for each in found["clusters"]) == 14
    assert found["clusters"][0]["central"][0] in TEXTS
    assert "central 1" in shown
    assert "coloured by kind" in (tmp_path / "map.html").read_text()
    found, shown = numbers(mmcl_, tmp_path, *arguments, "--threshold", 0.9999, "--smallest", 2)
    assert [each["size"] for each in found["clusters"]] == [2, 2]
    assert "10 of 14 rows are in no cluster" in shown
    code, _, err = mmcl_(*arguments)
    assert (code, "with -k, or the cosine of a community with --threshold" in err) == (2, True)
