from __future__ import annotations

import zlib

import numpy as np
import pytest


class Hashed:
    """Counts words into D places; every input is recorded. Knows ``encode(texts)`` alone."""

    def __init__(self, dim: int = 32, seed: int = 0) -> None:
        self.dim, self.seed = dim, seed
        self.encoded: list[str] = []

    def encode(self, texts: list[str]) -> np.ndarray:
        self.encoded += texts
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.split():
                vectors[row, zlib.crc32(f"{self.seed} {word}".encode()) % self.dim] += 1
        return vectors


@pytest.fixture
def hashed() -> type[Hashed]:
    """An encoder of texts that needs no model: texts that share words are alike."""
    return Hashed


@pytest.fixture
def sts_table() -> dict[str, list]:
    """Three tasks of 60, 80 and 40 pairs; the score is the share of common words, with noise and ties."""
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(60)]
    table: dict[str, list] = {name: [] for name in ("task", "split", "score", "sentence1", "sentence2")}
    for task, pairs in (("STSB", 60), ("STS12", 80), ("own", 40)):
        for _ in range(pairs):
            first, common = rng.choice(words, 6, replace=False), rng.integers(0, 7)
            second = np.concatenate([first[:common], rng.choice(words, 6 - common)])
            score = float(np.clip(np.round(common * 5 / 6 + rng.normal(0, 0.7), 1), 0, 5))
            for name, value in zip(table, (task, "test", score, " ".join(first), " ".join(second)), strict=True):
                table[name].append(value)
    return table
