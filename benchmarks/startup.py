"""How long does a user wait for commands whose work is next to nothing?

python benchmarks/startup.py                                               some three minutes

`import mmcl`, `mmcl --help`, and on a small model of drawn images and their captions a training of six steps, 24
captions to vectors, and a search; beside them, what any program waits for that imports torch, open_clip or
sentence-transformers.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TypeAlias

import yaml
from commands import CONFIG, ROWS
from measure import alternate, report
from PIL import Image

Command: TypeAlias = list[str | Path]

PYTHON: Command = [sys.executable, "-c"]
MMCL: Command = [sys.executable, "-m", "mmcl"]


def main() -> None:
    """Measure, print and write ``startup.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"MMCL_CACHE": str(Path(folder) / "cache"), "HF_HUB_OFFLINE": "1"}
        runs = {name: lambda command=command: call(command) for name, command in commands(Path(folder)).items()}
        seconds = alternate(runs, rounds=rounds)
    report(__file__, [{"command": name, "seconds": value} for name, value in seconds.items()], rounds=rounds)


def commands(folder: Path) -> dict[str, Command]:
    """By their names in the table, on a small model and an index that are made in ``folder``."""
    table, config = draw(folder)
    model, vectors, index = folder / "run", folder / "vectors", folder / "index"
    encode: Command = [*MMCL, "encode", model, table, "--column", "caption", "--out"]
    for prepared in ([*MMCL, "train", config, "--out", model], [*encode, vectors]):
        call(prepared)
    call([*MMCL, "index", "build", vectors, "--out", index])
    return {
        "python -c pass": [*PYTHON, "pass"],
        "import mmcl": [*PYTHON, "import mmcl"],
        "mmcl --help": [*MMCL, "--help"],
        "mmcl search, one query": [*MMCL, "search", index, "a red cup"],
        f"mmcl encode, {ROWS} captions": [*encode, folder / "timed"],
        "mmcl train, 6 steps": [*MMCL, "train", config, "--out", folder / "timed"],
        "import torch": [*PYTHON, "import torch"],
        "import open_clip": [*PYTHON, "import open_clip"],
        "import sentence_transformers": [*PYTHON, "import sentence_transformers"],
    }


def draw(folder: Path) -> tuple[Path, Path]:
    """A table of images of one colour each with captions, and the config of a small model that learns them."""
    table, config = folder / "pairs.csv", folder / "config.yaml"
    with table.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["file", "caption"])
        for row in range(ROWS):
            Image.new("RGB", (40, 32), (row * 9, 255 - row * 9, 99)).save(folder / f"{row}.png")
            lines.writerow([f"{row}.png", f"a cup of colour number {row}"])
    config.write_text(yaml.safe_dump(CONFIG | {"data": CONFIG["data"] | {"train": {"source": str(table)}}}))
    return table, config


def call(command: Command) -> None:
    """Run a command to its end, from where there is no result of it."""
    if "--out" in command:
        shutil.rmtree(command[-1], ignore_errors=True)
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    main()
