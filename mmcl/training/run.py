"""The run folder: config, metrics, checkpoints, model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmcl.config.load import load_config
from mmcl.config.schema import Config
from mmcl.models import Encoder, load
from mmcl.models.folder import DESCRIPTION
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import read_json


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
        """The resolved config: enough to repeat the run."""
        return load_config(self.folder / "config.yaml")

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
        return read_lines(self.folder / "metrics.jsonl")

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
    """The JSON lines of a file; a last line cut short by a crash is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
