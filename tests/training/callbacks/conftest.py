"""A run that mines hard negatives."""

from __future__ import annotations

import pytest

from .mined import PAIRS, write


@pytest.fixture
def config(tmp_path):
    rows = [{"anchor": anchor, "positive": positive} for anchor, positive in PAIRS]
    tower = {"name": "scratch", "layers": 1, "width": 16, "heads": 2, "tokenizer": {"vocab_size": 80}}
    return {
        "method": {"name": "simcse"},
        "data": {
            "train": {"source": write(tmp_path / "rows.jsonl", rows)},
            "columns": {"anchor": "anchor", "positive": "positive"},
            "mining": {"start": 2, "every": 3, "count": 2, "depth": 8},
        },
        "model": {"dim": 16, "text": {**tower, "head": {"kind": "none"}}},
        "training": {
            "epochs": 4,
            "batch_size": 12,
            "lr": 3e-3,
            "log_every": 1,
            "save_every": 1,
            "keep": 99,
            "precision": "float32",
        },
    }
