"""What a run was: data, method, model, effort, versions and machine, from the files in its folder."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from mmcl.config.data import SourceConfig
from mmcl.config.model import ImageTowerConfig, TableTowerConfig, TextTowerConfig, TowerConfig
from mmcl.config.schema import Config
from mmcl.config.section import Section
from mmcl.data.images import usable_cpus
from mmcl.formats.folder import DESCRIPTION
from mmcl.runtime.files import read_json
from mmcl.runtime.progress import duration
from mmcl.runtime.version import __version__
from mmcl.training.run import Run


@dataclass(frozen=True)
class History:
    """A run as its folder has it, without loading the model.

    Attributes:
        lines: of ``metrics.jsonl``, oldest first.
        card: what the training loop noted in the model folder; empty while there is none.
        version: of mmcl that wrote the model; "" while there is none.
        dim: of the model's embeddings; None while there is none.
    """

    config: Config
    lines: list[dict[str, Any]]
    card: dict[str, Any]
    version: str
    changed: datetime
    dim: int | None = None

    @classmethod
    def of(cls, run: Run) -> History:
        """Read the folder of ``run``."""
        model = run.folder / "model" / DESCRIPTION
        description = read_json(model) if model.is_file() else {}
        newest = next(path for name in ("metrics.jsonl", "config.yaml") if (path := run.folder / name).is_file())
        changed = datetime.fromtimestamp(newest.stat().st_mtime, tz=UTC)
        card, version = description.get("card", {}), description.get("mmcl_version", "")
        return cls(run.config, run.lines(), card, version, changed, description.get("dim"))

    @property
    def training(self) -> Mapping[str, Any]:
        """The card's settings of the training; empty for an unfinished run."""
        return self.card.get("training", {})

    @property
    def steps(self) -> int:
        """The last logged step."""
        return max((line["step"] for line in self.lines), default=0)

    @property
    def start(self) -> dict[str, float]:
        """The metrics before training; empty where it was not judged."""
        return next((line["start"] for line in self.lines if "start" in line), {})

    def evaluation(self) -> tuple[int, dict[str, float]]:
        """The step that the model was taken from, or the last one judged, and its metrics."""
        judged: dict[int, dict[str, float]] = {
            line["step"]: line["evaluation"] for line in self.lines if "evaluation" in line
        }
        if not judged:
            return 0, {}
        taken = self.training.get("step")
        step = taken if taken in judged else max(judged)
        return step, judged[step]

    def unfinished(self) -> str:
        """A sentence on how far an unfinished run has come; "" for a finished one."""
        if self.training:
            return ""
        epoch = max((line.get("epoch", 0.0) for line in self.lines), default=0.0)
        return (
            f"This run has written no model yet: its last logged step is {self.steps:,}, after "
            f"{epoch:.3g} of {self.config.training.epochs:g} epochs."
        )


def facts(history: History) -> list[tuple[str, str]]:
    """Names and values, in reading order."""
    config, training, data = history.config, history.training, history.card.get("data", {})
    rows = f", {data['rows']:,} rows" if "rows" in data else ""
    found = [("Data", " and ".join(map(_source, (config.data.train, *config.data.mix))) + rows)]
    found += [(f"Judged on: {name}", _source(source)) for name, source in config.evaluation.sources.items()]
    found.append(("Method", _settings(config.method)))
    start = config.model.name  # which knows its own towers and dimension: those in the config are defaults
    if start is not None:
        found.append(("Model", f"started from {start}"))
    towers: dict[str, TowerConfig | None] = {"Image tower": config.model.image, "Text tower": config.model.text}
    towers |= {f"Tower {name}": tower for name, tower in config.model.towers.items()}
    for name, tower in towers.items():
        if tower is not None and (described := _adapted(tower) if start else _tower(tower, config)):
            found.append((name, described))
    if dim := history.dim or (None if start else config.model.dim):
        found.append(("Embedding", f"{dim} dimensions"))
    settings = config.training
    batch = f"{settings.batch_size:,}" + (f" × {settings.accumulate} accumulated" if settings.accumulate > 1 else "")
    found.append(("Batch", f"{batch} rows"))
    found.append(
        (
            "Optimizer",
            f"{settings.optimizer}, learning rate {settings.lr:g}, {settings.schedule}, {settings.epochs:g} epochs",
        )
    )
    found.append(("Precision", str(training.get("precision", settings.precision))))
    found.append(("Steps", _steps(history)))
    rates = [line["pairs_per_second"] for line in history.lines if "pairs_per_second" in line]
    effort = [duration(training["seconds"])] if "seconds" in training else []
    effort += [f"{statistics.median(rates):,.0f} rows/s (median)"] if rates else []
    if effort:
        found.append(("Time", ", ".join(effort)))
    found.append(("Metrics written", f"{history.changed:%Y-%m-%d %H:%M} UTC"))
    if history.version:
        found.append(("Model written by", f"mmcl {history.version}"))
    found.append(("Report written by", f"mmcl {__version__}, torch {torch.__version__}"))
    found.append(("Report written on", machine()))
    return found


def machine() -> str:
    """The processors of this machine, by their makers' names."""
    name = platform.processor() or platform.machine()
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        names = (line.partition(":")[2].strip() for line in listing.read_text().splitlines() if "model name" in line)
        name = next(names, name)
    parts = [f"{name} ({usable_cpus()} CPUs)"]
    if torch.cuda.is_available():
        parts += [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return ", ".join(parts)


def skipped(rows: Sequence[Mapping[str, Any]], shown: int = 5) -> list[dict[str, str]]:
    """The first of the rows that ``skipped.jsonl`` lists."""
    return [{key: str(row.get(key, "")) for key in ("source", "id", "role", "reason")} for row in rows[:shown]]


def _source(source: SourceConfig) -> str:
    return source.source + (f", split {source.split}" if source.split else "")


def _settings(section: Section) -> str:
    """The name, where there is one, and the rest in brackets, but for what is off unless it is asked for."""
    fields, values = type(section).model_fields, dict(section)
    name = values.pop("name", "")
    given = {key: value for key, value in values.items() if value or value != fields[key].default}
    rest = ", ".join(f"{key.replace('_', ' ')}: {_shown(value)}" for key, value in given.items())
    return " ".join(filter(None, (name, f"({rest})" if rest else "")))


def _shown(value: Any) -> Any:
    if isinstance(value, Section):  # a teacher, or one without a name, such as mlm
        return _settings(value)
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return {True: "yes", False: "no", None: "none"}[value] if value is None or isinstance(value, bool) else value


def _tower(tower: TowerConfig, config: Config) -> str:
    if isinstance(tower, TableTowerConfig):
        fields = ", ".join(f"{name} ({field.kind})" for name, field in tower.fields.items())
        return f"{fields}; {tower.head.kind} head"
    assert isinstance(tower, ImageTowerConfig | TextTowerConfig), "there is no other"
    # Of open_clip, true names no weights: only a tag or a file does.
    loaded = isinstance(tower.pretrained, str) if tower.name.startswith("open_clip:") else tower.pretrained
    weights = "pretrained" if loaded and tower.name != "scratch" else "from scratch"
    words = [tower.name] if tower.name == "scratch" else [tower.name, weights]
    words += [adapted] if (adapted := _adapted(tower)) else []
    words += [f"{config.data.image.size} px"] if isinstance(tower, ImageTowerConfig) else []
    words += [f"{tower.head.kind} head"] if tower.head.kind != "none" else []
    return ", ".join(words)


def _adapted(tower: TowerConfig) -> str:
    """What of a tower learns, where not all of it does; "" where it does."""
    words = ["frozen"] if tower.frozen else []
    words += [f"first {tower.freeze_blocks} blocks frozen"] if tower.freeze_blocks else []
    words += [f"LoRA of rank {tower.lora.rank}"] if tower.lora else []
    return ", ".join(words)


def _steps(history: History) -> str:
    total = history.training.get("steps")
    if total is None:
        return f"{history.steps:,} logged"
    taken = history.training.get("step", total)
    return f"{total:,}" + ("" if taken == total else f"; the model is that of step {taken:,}")
