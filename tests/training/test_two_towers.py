"""Two towers of texts that share nothing: questions and their answers under clip's loss."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmcl import load, train
from mmcl.config.load import load_config
from mmcl.runtime.errors import MmclError
from mmcl.training.build import build_method

ANIMALS, PLACES = ("dog", "cat", "cow", "hen", "fox", "owl"), ("barn", "house", "wood", "field")
TEXT = {"modality": "text", "layers": 1, "width": 16, "heads": 2, "tokenizer": {"vocab_size": 60}}


@pytest.fixture
def config(tmp_path):
    rows = [
        {"q": f"where does the {animal} of the {place} sleep", "a": f"in the {place} the {animal} does"}
        for animal in ANIMALS
        for place in PLACES
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source": str(path)}
    return {
        "name": "faq",
        "method": {"name": "clip"},
        "data": {"train": source, "columns": {"question": "q", "answer": "a"}},
        "model": {"dim": 12, "towers": {"question": TEXT, "answer": TEXT | {"width": 24}}},
        "training": {"epochs": 25, "batch_size": 12, "lr": 1e-2, "log_every": 5, "device": "cpu"},
        "evaluation": {"sources": {"same": source}},
    }


def test_trains_saves_loads_and_encodes_by_the_name_of_a_tower(tmp_path, config):
    # In bfloat16 near ties may change places between batches of other shapes.
    run = train(config, out=tmp_path / "run", overrides=["training.precision=float32"], show_progress=False)
    scores = run.metrics
    assert scores["same/question_to_answer/hit@1"] > 0.5
    encoder = load(tmp_path / "run", dtype="float32")
    assert encoder.towers.names == ["answer", "question"]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    questions = encoder.encode([row["q"] for row in rows], modality="question")
    answers = encoder.encode([row["a"] for row in rows], modality="answer")
    hits = (questions @ answers.T).argmax(1) == np.arange(len(rows))
    assert hits.mean() == pytest.approx(scores["same/question_to_answer/hit@1"])
    with pytest.raises(MmclError, match="several text towers"):
        encoder.encode("where does the dog sleep", modality="text")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["method=simcse", "data.columns={}"],
            r"model\.towers\.question: method 'simcse' has no towers of",
        ),
        (["data.columns.text=q"], r"data\.columns\.text: method 'clip' has no such role"),
        (["model.text={}"], "towers: they stand in the place of text; leave one of the two out"),
        (
            ["model.towers.answer.modality=sound"],
            r"'model\.towers\.answer' is .*: settings with modality: text or image",
        ),
        (["model.towers.answer.widht=3"], r"unknown key 'model\.towers\.answer\.widht'; did you mean 'width'"),
    ],
)
def test_mistakes_are_named(tmp_path, config, changes, message):
    with pytest.raises(MmclError, match=message):
        build_method(load_config(config, changes), tmp_path / "run")
