"""Commands of mmcl on a small corpus of drawn images, and what they give when nothing goes wrong."""

from __future__ import annotations

import csv
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml
from faults import Outcome, run
from PIL import Image, ImageDraw

COLOURS, KINDS = ("red", "green", "blue", "grey", "black", "white"), ("cup", "car", "dog", "bird", "house", "tree")
WORDS = COLOURS + KINDS
FORMATS = ("png", "jpg", "webp", "gif", "tiff", "bmp")
ROWS = 24
CONFIG: dict[str, Any] = {
    "name": "trial",
    "data": {"columns": {"image": "file", "text": "caption"}, "image": {"size": 32}},
    "model": {
        "dim": 16,
        "image": {"name": "timm:resnet10t", "args": {"channels": [8, 8, 16, 16], "stem_width": 8}},
        "text": {"name": "scratch", "layers": 1, "width": 16, "heads": 2, "tokenizer": {"vocab_size": 60}},
    },
    "training": {"epochs": 2, "batch_size": 8, "lr": 1e-3, "log_every": 1, "save_every": 2, "keep": 2}
    | {"precision": "float32"},
    "evaluation": {"every": 1},
}


class Corpus:
    """A table of drawn images with captions, what commands make of it when nothing goes wrong, and the commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = folder / "pairs.csv"
        self.config = folder / "config.yaml"
        self._draw()
        source = {"source": str(self.table)}
        config = CONFIG | {"data": CONFIG["data"] | {"train": source}}
        config["evaluation"] = CONFIG["evaluation"] | {"sources": {"dev": source}}
        self.config.write_text(yaml.safe_dump(config))
        self._train_sentences()
        self.reference: dict[str, dict[str, bytes]] = {}
        self.seconds: dict[str, float] = {}
        self.events: dict[str, int] = {}
        self.kilobytes: dict[str, int] = {}
        for name in COMMANDS:
            out = folder / name
            self._begin(name, out)
            done = self.run(name, out)
            if done.code != 0:
                sys.exit(f"{name} fails with nothing in its way:\n{done.stderr}")
            self.reference[name] = results(name, out)
            self.seconds[name], self.events[name] = done.seconds, done.events
            self.kilobytes[name] = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) // 1024

    def _draw(self) -> None:
        generator = random.Random(0)
        (self.folder / "images").mkdir()
        with self.table.open("w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["file", "caption"])
            for row in range(ROWS):
                image = Image.new("RGB", (40, 32), tuple(generator.randrange(256) for _ in range(3)))
                ImageDraw.Draw(image).ellipse([generator.randrange(20), 4, 34, 28], fill=(row * 9, 0, 99))
                image.save(self.folder / "images" / f"{row}.{FORMATS[row % len(FORMATS)]}")
                caption = " ".join(generator.choice(WORDS) for _ in range(5))
                lines.writerow([f"images/{row}.{FORMATS[row % len(FORMATS)]}", f"{caption} {row}"])

    def _train_sentences(self) -> None:
        """A model of texts alone, for what exports such."""
        config = {
            "name": "sentences",
            "method": "simcse",
            "data": {"train": {"source": str(self.table)}, "columns": {"text": "caption"}},
            "model": {"dim": 16, "text": CONFIG["model"]["text"]},
            "training": CONFIG["training"] | {"epochs": 1},
        }
        path = self.folder / "sentences.yaml"
        path.write_text(yaml.safe_dump(config))
        done = run("train", path, "--out", self.folder / "sentences")
        if done.code != 0:
            sys.exit(f"no model of sentences: {done.stderr}")

    def _begin(self, name: str, out: Path) -> None:
        """What has to be there before: an index replaces an older one."""
        if name == "index":
            small = out.with_name(f"{out.name}-before")
            run("encode", self.folder / "train", self.table, "--column", "file", "--out", small)
            run("index", "build", small, "--out", out, "--similarity", "dot")
            shutil.rmtree(small)

    def begin(self, name: str, out: Path) -> None:
        """As :meth:`_begin`, from a copy."""
        if name == "index":
            if not (kept := self.folder / "index-begun").exists():
                self._begin(name, kept)
            shutil.copytree(kept, out)

    def run(self, name: str, out: Path, **how: Any) -> Outcome:
        """One of the commands, into the folder ``out``."""
        model, vectors = self.folder / "train", self.folder / "encode"
        match name:
            case "train":
                begun = out.is_dir() and any(out.iterdir())
                return run("train", self.config, "--out", out, *(["--resume"] if begun else []), **how)
            case "encode":
                # An interruption costs at most a shard, which of a small corpus is a small one.
                return run("encode", model, self.table, "--column", "caption", "--shard-rows", 4, "--out", out, **how)
            case "index":
                return run("index", "build", vectors, "--out", out, **how)
            case _:
                sentences = self.folder / "sentences"
                return run("export", sentences, "--to", "sentence-transformers", "--out", out, **how)


COMMANDS = ("train", "encode", "index", "export")


def results(name: str, out: Path) -> dict[str, bytes]:
    """What must be equal whatever happened on the way: the bytes of a command's results."""
    if name == "train":
        return {"weights": (out / "model" / "model.safetensors").read_bytes()}
    names = {
        "encode": ("*.npy", "*.parquet"),
        "index": ("*.faiss", "*.parquet"),
        "export": ("*.safetensors", "*.json"),
    }
    files = sorted(file for pattern in names[name] for file in out.glob(pattern))
    return {file.name: file.read_bytes() for file in files}
