"""The run folder: config, metrics, checkpoints, model."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmcl.config.load import load_config, read_yaml
from mmcl.config.schema import Config
from mmcl.encoding import Encoder
from mmcl.encoding.load import load
from mmcl.formats.folder import DESCRIPTION
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import read_json

log = logging.getLogger("mmcl")


@dataclass(frozen=True)
class Run:
    """A run on disk, finished or not.

    Attributes:
        folder: holds ``config.yaml``, ``metrics.jsonl``, ``checkpoints/``, ``model/`` and ``report.html``.
    """

    folder: Path

    def __post_init__(self) -> None:
        if not (self.folder / "config.yaml").is_file():
            raise MmclError(f"{self.folder}: not a run folder (it has no config.yaml)")

    @cached_property
    def config(self) -> Config:
        """The resolved config: enough to repeat the run. One of a version that knew no ``data.image.stored`` cropped
        squares."""
        path = self.folder / "config.yaml"
        knows = "stored" in read_yaml(path).get("data", {}).get("image", {"stored": None})
        return load_config(path, () if knows else ["data.image.stored=square"])

    @property
    def model(self) -> Encoder:
        """The best model by the config's metric, or the last one."""
        return load(self.folder / "model")

    @property
    def card(self) -> dict[str, Any]:
        """What the model card says of data, training and scores; empty while the run is unfinished."""
        path = self.folder / "model" / DESCRIPTION
        return dict(read_json(path).get("card", {})) if path.is_file() else {}

    def lines(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``, oldest first."""
        return read_metrics(self.folder / "metrics.jsonl")

    @property
    def metrics(self) -> dict[str, float]:
        """The evaluation of the step that the model was taken from; empty without evaluation.

        Keys are like ``dev/image_to_text/hit@1``.
        """
        evaluated = [line for line in self.lines() if "evaluation" in line]
        if not evaluated:
            return {}
        step = self.card.get("training", {}).get("step")
        chosen = [line for line in evaluated if line["step"] == step]
        return dict((chosen or evaluated)[-1]["evaluation"])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; a last line cut short by a crash is left out, and so are damaged ones,
    which are counted in a warning."""
    lines, damaged = [], 0
    content = path.read_bytes().split(b"\n") if path.is_file() else []
    *complete, cut_short = content or [b""]
    for line in [*complete, cut_short]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            lines.append(value)
        elif line is not cut_short and line.strip():
            damaged += 1
    if damaged:
        log.warning("%s: %d damaged lines are left out", path, damaged)
    return lines


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``: each with its step, numbers or text beside it, and mappings to numbers.

    What is none of this, in a file that somebody else has written, is left out and counted in a warning.
    """
    lines = read_lines(path)
    sound = [line for line in lines if _is_metrics(line)]
    if len(sound) < len(lines):
        log.warning("%s: %d lines hold no metrics of a step and are left out", path, len(lines) - len(sound))
    return sound


def _is_metrics(line: dict[str, Any]) -> bool:
    step = line.get("step")
    groups = [value for value in line.values() if isinstance(value, dict)]
    evaluated = line.get("evaluation", {})
    return (
        type(step) is int
        and step >= 0
        and isinstance(evaluated, dict)
        and all(_is_number(number) for group in groups for number in group.values())
        and all(isinstance(value, str | dict) or _is_number(value) for value in line.values())
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
