"""Trackers of experiments, by accelerate: TensorBoard, Weights & Biases, MLflow and Trackio."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import tracking

from mmcl.config.schema import Config
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import atomic_file, read_json

RUNS = "trackers.json"  # in the run folder: what each tracker calls the run, for a resumed one to go on with


def require_trackers(names: Sequence[str]) -> None:
    """Raise ``MmclError`` if the library of a tracker is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MmclError(
                f"training.trackers: {name} needs the package {name}: pip install 'mmcl[{name}]', or leave it out"
            )


class Trackers:
    """The trackers that ``training.trackers`` names, of one run.

    TensorBoard's events are in the folder ``tensorboard`` of the run; the others keep theirs where their own settings
    and environment variables say, under the name of the config as the project.

    Args:
        config: of the run, which the trackers are given as well.
        folder: of the run.
        resume_step: a run that is resumed goes on after this step; 0 for a new one.
    """

    def __init__(self, config: Config, folder: Path, resume_step: int) -> None:
        require_trackers(config.training.trackers)
        path = folder / RUNS
        runs = dict(read_json(path)) if resume_step and path.is_file() else {}
        self._trackers = []
        for name in config.training.trackers:
            tracker = _tracker(name, config.name, folder, resume_step, runs.get(name))
            tracker.start()
            self._trackers.append(tracker)
            if (run := _run_of(name, tracker)) is not None:
                if name not in runs:
                    tracker.store_init_configuration(_flat(config.model_dump(mode="json")))
                runs[name] = run
        if runs:
            with atomic_file(path) as beside:
                beside.write_text(json.dumps(runs) + "\n", encoding="utf-8")

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Hand on the numbers of a line of metrics: nested ones under their own names, others as ``train/NAME``."""
        scalars: dict[str, float] = {}
        for key, value in values.items():
            scalars |= value if isinstance(value, dict) else {f"train/{key}": value}
        scalars = {key: value for key, value in scalars.items() if isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.log(scalars, step=step)

    def close(self) -> None:
        """Write what is left."""
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = []


def _tracker(name: str, project: str, folder: Path, resume_step: int, run: str | None) -> Any:
    """A tracker of accelerate's, not started yet; ``run`` is what it called the run that is resumed."""
    if name == "tensorboard":
        purge = resume_step + 1 if resume_step else None
        return tracking.TensorBoardTracker("tensorboard", folder, purge_step=purge)
    if name == "wandb":
        return tracking.WandBTracker(project, name=folder.name, dir=str(folder), id=run, resume="allow")
    if name == "mlflow":
        return tracking.MLflowTracker(project, run_name=folder.name, run_id=run)
    return tracking.TrackioTracker(project, name=run or folder.name, resume="allow" if run else "never")


def _run_of(name: str, tracker: Any) -> str | None:
    """What a tracker calls its run; None where the run folder is all there is."""
    if name == "tensorboard":
        return None
    run = tracker.tracker
    return str({"wandb": lambda: run.id, "mlflow": lambda: run.info.run_id, "trackio": lambda: run.name}[name]())


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted keys, in values that every tracker takes."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = (
                value if value is None or isinstance(value, bool | int | float | str) else str(value)
            )
    return flat
