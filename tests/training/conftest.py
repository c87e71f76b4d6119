"""A run of texts alone, small enough for many tests."""

from __future__ import annotations

import json

import pytest

from mmcl import train
from mmcl.training.loop import Trainer

from . import sentence_runs
from .sentence_runs import SENTENCES, write

ANIMALS, VERBS = ("dog", "cat", "cow", "hen", "fox", "owl"), ("runs", "sleeps", "eats", "sings", "waits")


@pytest.fixture
def train_until(monkeypatch):
    """Train into a folder by a config until a step, before which the run is interrupted."""

    def train_until(step, config, out):
        take = Trainer._step

        def cut_off(self, batches, number, rate):
            if number == step:
                raise KeyboardInterrupt
            return take(self, batches, number, rate)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_step", cut_off)
            with pytest.raises(KeyboardInterrupt):
                train(config, out=out, show_progress=False)

    return train_until


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


@pytest.fixture
def sentences(tmp_path):
    """216 of them, as a table for each way of learning, and a labelled one to judge by."""
    pairs = [
        (f"a {a} {v} here", f"the {a} {v}", f"a {a} never {v}")
        for a in sentence_runs.ANIMALS
        for v in sentence_runs.VERBS
    ]
    score = [{"sentence1": one, "sentence2": other, "score": 5.0} for one, other, _ in pairs]
    score += [{"sentence1": one, "sentence2": other, "score": 1.0} for one, _, other in pairs[::-1]]
    labelled = [{"anchor": r["sentence1"], "positive": r["sentence2"], "score": r["score"]} for r in score]
    return {
        "alone": write(tmp_path / "alone.jsonl", [{"text": text} for text in SENTENCES]),
        "triplets": write(
            tmp_path / "triplets.jsonl",
            [dict(zip(("anchor", "positive", "negative"), row, strict=True)) for row in pairs],
        ),
        "labelled": write(tmp_path / "labelled.jsonl", labelled),
        "sts": write(tmp_path / "sts.jsonl", score),
    }
