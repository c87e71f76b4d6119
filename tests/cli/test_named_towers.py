"""A model with two towers of texts, from the command line: a corpus by one of them, queries by the other."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import mmcl
from mmcl.config.data import ImageConfig
from mmcl.config.model import HeadConfig, ImageTowerConfig, TextTowerConfig, TokenizerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.encoding import Encoder
from mmcl.evaluation import retrieval
from mmcl.formats.towers.image import build_image_tower
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.towers import Towers

QUESTIONS = [f"who {verb} the {thing}" for verb in ("saw", "ate", "made") for thing in ("bread", "house", "sea", "dog")]
ANSWERS = [
    f"the {who} did it in {place}" for who in ("baker", "king", "cat") for place in ("rome", "may", "rain", "oslo")
]


def texts(vocabulary):
    tokenizer = train_tokenizer(vocabulary, TokenizerConfig(vocab_size=60), 20)
    return TextEmbedder(
        *build_text_tower(TextTowerConfig(layers=1, width=16, heads=2), tokenizer), Head(HeadConfig(), 16, 8)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds a model of questions, answers and images, one with a single tower, and a table."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("named")
    args = {"channels": [8, 8, 8, 8], "stem_width": 8}
    images, image = build_image_tower(ImageTowerConfig(name="timm:resnet10t", args=args), ImageConfig(size=32))
    named = {
        "question": texts(QUESTIONS),
        "answer": texts(ANSWERS),
        "image": ImageEmbedder(images, image, Head(HeadConfig(), image.width, 8)),
    }
    Encoder(Towers(named, 8, "faq")).eval().save(folder / "model")
    Encoder(Towers({"text": texts(QUESTIONS + ANSWERS)}, 8, "alone")).eval().save(folder / "alone")
    lines = []
    for row, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        Image.new("RGB", (32, 32), (20 * row, 99, 240 - 20 * row)).save(folder / f"{row}.png")
        lines.append(
            {
                "id": row,
                "q": question,
                "a": answer,
                "image": f"{row}.png",
                "colour": ["red", "blue"][row % 2],
                "score": row,
            }
        )
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def encoder(folder):
    return mmcl.load(folder / "model", dtype="float32")


def run(mmcl_, *arguments):
    code, out, err = mmcl_(*arguments)
    assert code == 0, err
    return out


def refused(mmcl_, *arguments):
    code, _, err = mmcl_(*arguments)
    assert code == 2
    (line,) = (line for line in err.splitlines() if line.startswith("error:"))
    return line


def test_an_index_of_answers_is_searched_with_questions(mmcl_, folder, encoder, tmp_path):
    vectors, index = tmp_path / "vectors", tmp_path / "index"
    where = (folder / "model", folder / "rows.jsonl", "--column", "a", "--out", vectors)
    run(mmcl_, "encode", *where, "--tower", "answer", "--dtype", "float32")
    run(mmcl_, "index", "build", vectors, "--out", index)
    found = tmp_path / "found.json"
    run(mmcl_, "search", index, *QUESTIONS[:3], "-k", 12, "--tower", "question", "--json", found)
    queries = mmcl.load(folder / "model").encode(QUESTIONS[:3], modality="question")
    expected = queries @ encoder.encode(ANSWERS, modality="answer").T
    for question, scores in zip(QUESTIONS, expected, strict=False):
        hits = json.loads(found.read_text())[question]
        assert [int(hit["id"]) for hit in hits] == np.argsort(-scores).tolist()
        np.testing.assert_allclose([hit["score"] for hit in hits], np.sort(scores)[::-1], atol=1e-5)
    photo = str(folder / "3.png")
    run(mmcl_, "search", index, photo, "-k", 12, "--tower", "question", "--json", found)  # images have a tower too
    (image,) = mmcl.load(folder / "model").encode([folder / "3.png"])
    scores = np.sort(encoder.encode(ANSWERS, modality="answer") @ image)[::-1]
    np.testing.assert_allclose([hit["score"] for hit in json.loads(found.read_text())[photo]], scores, atol=1e-5)
    assert "has several text towers; name one: answer or question" in refused(mmcl_, "search", index, "who")
    assert "questoin" in refused(mmcl_, "search", index, "who", "--tower", "questoin")
    assert "other weights" in refused(mmcl_, "search", index, "who", "--model", folder / "alone")


def test_retrieval_asks_by_one_tower_and_finds_by_the_other(mmcl_, folder, encoder, tmp_path):
    ask = ("eval", "retrieval", folder / "model", folder / "rows.jsonl", "--query", "q", "--document", "a")
    ask += ("--dtype", "float32", "-k", "1,3", "--tower", "question")
    found = tmp_path / "found.json"
    run(mmcl_, *ask, "--document-tower", "answer", "--against", folder / "alone", "--json", found)
    found = json.loads(found.read_text())
    sides = [encoder.encode(texts, modality=name) for texts, name in ((QUESTIONS, "question"), (ANSWERS, "answer"))]
    qrels = {str(row): {str(row): 1} for row in range(12)}
    for way, (one, other) in {"query_to_document": sides, "document_to_query": sides[::-1]}.items():
        expected = retrieval((list(qrels), one), (list(qrels), other), qrels, ks=(1, 3))
        assert found[way]["metrics"]["mrr"] == pytest.approx(expected.metrics["mrr"])
    assert "query_to_document/mrr" in json.dumps(found["against"])
    assert "name that of documents: --document-tower answer or question" in refused(mmcl_, *ask)
    assert "questoin" in refused(mmcl_, *ask, "--document-tower", "questoin")
    assert "several text towers" in refused(mmcl_, *ask[:-2])


def test_tasks_of_one_tower_take_its_name(mmcl_, folder, encoder, tmp_path):
    table, found = folder / "rows.jsonl", tmp_path / "found.json"
    run(mmcl_, "eval", "diagnostics", folder / "model", table, "--text", "q", "--tower", "answer", "--json", found)
    pairs = ("eval", "sts", folder / "model", table, "--pairs", "q,a", "--tower", "answer", "--resamples", 10)
    run(mmcl_, *pairs, "--against", folder / "model", "--json", found)  # judged by the same tower
    assert json.loads(found.read_text())["against"]["metrics"]["rows"]["difference"] == 0.0
    run(mmcl_, *pairs, "--against", folder / "alone")  # which has no choice
    zero_shot = ("eval", "zero-shot", folder / "model", table, "--label", "colour", "--dtype", "float32")
    run(mmcl_, *zero_shot, "--tower", "question", "--json", found)
    images = encoder.encode([folder / f"{row}.png" for row in range(12)])
    names = encoder.encode(["blue", "red"], modality="question")
    hits = (images @ names.T).argmax(1) == np.array([1, 0] * 6)
    assert json.loads(found.read_text())["metrics"]["top@1"] == pytest.approx(hits.mean())
    assert "several text towers" in refused(mmcl_, *zero_shot)
