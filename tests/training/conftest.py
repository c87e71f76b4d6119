"""A run of texts alone, small enough for many tests."""

from __future__ import annotations

import json

import pytest

ANIMALS, VERBS = ("dog", "cat", "cow", "hen", "fox", "owl"), ("runs", "sleeps", "eats", "sings", "waits")


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """Thirty pairs of sentences, five steps of six rows an epoch: a fraction of a second to train."""
    pairs = [(f"a {animal} {verb} here", f"the {animal} {verb}") for animal in ANIMALS for verb in VERBS]
    path = tmp_path_factory.mktemp("words") / "words.jsonl"
    path.write_text("".join(json.dumps({"anchor": a, "positive": b}) + "\n" for a, b in pairs))
    tower = {"name": "scratch", "layers": 1, "width": 16, "heads": 2, "tokenizer": {"vocab_size": 60}}
    training = {"epochs": 2, "batch_size": 6, "lr": 3e-3, "log_every": 1, "save_every": 4, "precision": "float32"}
    return {
        "name": "words",
        "method": {"name": "simcse"},
        "data": {"train": {"source": str(path)}, "columns": {"anchor": "anchor", "positive": "positive"}},
        "model": {"dim": 16, "text": {**tower, "head": {"kind": "none"}}},
        "training": training | {"device": "cpu"},
        "evaluation": {"sources": {"same": {"source": str(path)}}},
    }
