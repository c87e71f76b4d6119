"""Pairs to mine hard negatives of, and what should be mined of them."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmcl.config.load import load_config
from mmcl.encoding import Encoder
from mmcl.training import train
from mmcl.training.build import build_method
from mmcl.training.checkpoint import load_checkpoint

ANIMALS, VERBS = ("dog", "cat", "cow", "hen", "fox", "owl"), ("runs", "sleeps", "eats", "sings", "waits")
PAIRS = [(f"a {animal} {verb} here", f"the {animal} {verb}") for animal in ANIMALS for verb in VERBS]
# Anchors and positives that come again, a positive that is an anchor elsewhere, and a row with two positives.
PAIRS += [
    ("a dog runs here", "a running dog"),
    ("some hound", "the dog runs"),
    ("the cat eats", "food"),
    ("pets", ["the cat runs", "the hen eats"]),
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run_of(config, folder, *overrides, **options):
    return train(config, out=folder, overrides=overrides, show_progress=False, **options)


def files_of(folder):
    """Step to the lines of its file."""
    return {int(p.stem.removeprefix("step-")): pq.read_table(p).to_pylist() for p in sorted(folder.glob("mined/*"))}


def texts(cell):
    return [cell] if isinstance(cell, str) else cell


def encoder_at(config, folder, step):
    method = build_method(load_config(config), folder)
    load_checkpoint(folder / "checkpoints" / f"step-{step:08d}", method, None)
    encoder = Encoder(method.encoder.eval())
    encoder.set_compute("float32")
    return encoder


def positives_that_may_be_negatives(row):
    """The distinct positives that are not the row's own in any way."""
    anchor, positive = PAIRS[row]
    own = {anchor, *texts(positive)}
    own |= {text for other, cell in PAIRS if other in own for text in texts(cell)}
    return sorted({text for _, cell in PAIRS for text in texts(cell)} - own)


def expected_of(encoder, row, count, passes):
    """Similarity of the row's positive; text and similarity of its hard negatives among the nearest eight."""
    anchor, positive = PAIRS[row]
    candidates = positives_that_may_be_negatives(row)
    vector = encoder.encode(anchor)
    own = min(float(encoder.encode(text) @ vector) for text in texts(positive))
    scores = encoder.encode(candidates) @ vector
    nearest = np.argsort(-scores)[:8]
    return own, [(candidates[n], float(scores[n])) for n in nearest if passes(candidates[n], scores[n], own)][:count]


def check_against(encoder, lines, passes=lambda text, score, own: score < own, count=2):
    """Returns how many were drawn at random."""
    rows = [line["row"] for line in lines]
    assert rows == [row for row in range(len(PAIRS)) for _ in range(count)]
    random = 0
    for row in range(len(PAIRS)):
        own, expected = expected_of(encoder, row, count, passes)
        for place, line in enumerate(lines[row * count : row * count + count]):
            assert line["positive_score"] == pytest.approx(own, abs=1e-5)
            assert line["anchor"] == str(row)
            stands_in = texts(PAIRS[int(line["negative"])][1])
            assert set(stands_in) & set(positives_that_may_be_negatives(row))
            if line["rank"] < 0:
                random += 1
                assert place >= len(expected)
                continue
            assert expected[place][0] in stands_in
            assert line["score"] == pytest.approx(expected[place][1], abs=1e-5)
    return random
