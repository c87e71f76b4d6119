"""Runs on sentences: their rows, configs and feeds."""

from __future__ import annotations

import json

import numpy as np
import torch

from mmcl.config.load import load_config
from mmcl.data.batches.feed import open_feed
from mmcl.data.batches.sampler import Draw
from mmcl.training.build import build_method

ANIMALS, VERBS = ("dog", "cat", "cow", "hen", "fox", "owl"), ("runs", "sleeps", "eats", "sings", "waits", "hides")
PLACES = ("here", "at home", "in the wood", "by the sea", "in a field", "on a hill")
SENTENCES = [f"a {animal} {verb} {place}" for animal in ANIMALS for verb in VERBS for place in PLACES]
PROMPTS = {"query": "what is it ", "passage": "so it is "}
TRIPLETS = {"anchor": "anchor", "positive": "positive", "negative": "negative"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config_of(source, method=None, columns=None, **more):
    return {
        "name": "tiny",
        "method": {"name": "simcse"} | (method or {}),
        "data": {"train": {"source": source}, "columns": columns or {}} | more.pop("data", {}),
        "model": {
            "dim": 32,
            "text": {
                "name": "scratch",
                "layers": 1,
                "width": 32,
                "heads": 2,
                "head": {"kind": "none"},
                "tokenizer": {"vocab_size": 80},
            },
        },
        "training": {"epochs": 3, "batch_size": 24, "lr": 3e-3, "log_every": 1, "save_every": 5},
    } | more


def losses(run):
    return [line["loss"] for line in run.lines() if "loss" in line]


def feed_of(config, folder, *overrides, augmented=True):
    config = load_config(config, overrides)
    method = build_method(config, folder).eval()
    sources = [config.data.train, *config.data.mix]
    return open_feed(sources, method.reading, config, folder, augmented=augmented, device=torch.device("cpu")), method


def draw(*rows, turn=0):
    return Draw(0, np.array(rows), np.full(len(rows), turn))


def prompted(config, **prompts):
    config["model"]["text"]["prompts"] = PROMPTS
    config["data"]["prompts"] = prompts
    return config
