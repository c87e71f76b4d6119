"""Run folders made by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmcl.config.load import load_config, to_yaml
from mmcl.training.run import Run

CONFIG: dict[str, Any] = {
    "name": "emoji",
    "data": {"train": {"source": "pairs.csv", "split": "train"}},
    "model": {"image": {"name": "timm:resnet18"}, "text": {"name": "scratch"}},
    "evaluation": {"sources": {"dev": {"source": "dev.csv"}}, "best": "dev/image_to_text/hit@1"},
}


def _steps(count: int = 4) -> list[dict[str, Any]]:
    """Lines of metrics: the loss falls from 5 by a half a line, and every second step is judged."""
    lines: list[dict[str, Any]] = []
    for number in range(count):
        step = 10 * (number + 1)
        logged = {"epoch": step / 20, "loss": 5 - number / 2, "accuracy": number / 10, "temperature": 0.07, "lr": 1e-3}
        lines.append({"step": step, **logged, "grad_norm": 1.5, "pairs_per_second": 1000.0 + number})
        if number % 2:
            ways = ("image_to_text", "text_to_image")
            hits = {f"dev/{way}/hit@{k}": (step + k) / 100 for way in ways for k in (1, 10)}
            lines.append({"step": step, "evaluation": {**hits, **{f"dev/{way}/median_rank": 3.5 for way in ways}}})
    return lines


def _fake_run(
    folder: Path, lines: list[dict[str, Any]] | None, *, step: int | None = None, config: dict[str, Any] = CONFIG
) -> Run:
    """A run folder; with ``step`` a finished one, whose model was taken from there. ``None``: nothing logged yet."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(load_config(config)), encoding="utf-8")
    if lines is not None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    if step is not None:
        training = {"step": step, "steps": 40, "precision": "float32", "seconds": 192.4}
        card = {"data": {"rows": 7902, "source": "pairs.csv", "skipped": 0}, "training": training}
        (folder / "model").mkdir(exist_ok=True)
        description = {"format_version": 1, "mmcl_version": "0.0.9", "card": card}
        (folder / "model" / "mmcl.json").write_text(json.dumps(description), encoding="utf-8")
    return Run(folder)


@pytest.fixture(scope="session")
def config() -> dict[str, Any]:
    return CONFIG


@pytest.fixture(scope="session")
def steps() -> Callable[..., list[dict[str, Any]]]:
    return _steps


@pytest.fixture(scope="session")
def fake_run() -> Callable[..., Run]:
    return _fake_run
