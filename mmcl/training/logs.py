"""What a run says while it goes: metrics on disk and in trackers, a bar or lines on stderr."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmcl.config.schema import Config
from mmcl.runtime.files import atomic_file
from mmcl.runtime.progress import duration
from mmcl.training.run import read_metrics
from mmcl.training.trackers import Trackers

log = logging.getLogger("mmcl")
SECONDS_BETWEEN_LINES = 15.0
LONGEST_SILENCE = 25.0


class MetricsLog:
    """``metrics.jsonl`` and the trackers of ``training.trackers``; silent on all processes but the first.

    Args:
        config: of the run.
        folder: of the run.
        active: whether this process writes.
        resume_step: lines after this step belong to work that is about to be done again, and are dropped.
    """

    def __init__(self, config: Config, folder: Path, *, active: bool, resume_step: int) -> None:
        self.active = active
        self._file = None
        self._trackers: Trackers | None = None
        if not active:
            return
        path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(path) if line["step"] <= resume_step] if resume_step else []
        with atomic_file(path) as beside:
            beside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        if config.training.trackers:
            self._trackers = Trackers(config, folder, resume_step)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line; numbers, also those nested one level deep, go to the trackers."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._trackers is not None:
            self._trackers.log(step, values)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._trackers is not None:
            self._trackers.close()


class Ticker:
    """Step, time left, and the newest metrics: a bar on a terminal, else a line now and then.

    Args:
        steps: of the run.
        done: of them, before this process began.
        show: a bar, or nothing at all; a bar for a terminal if None, else lines.
    """

    def __init__(self, steps: int, done: int, *, show: bool | None) -> None:
        self.steps = steps
        self._started, self._first = time.monotonic(), done
        self._spoke = self._started
        self._words = ""
        self._newest = ""  # metrics that no line has had yet
        self._bar: Any = None
        self._silent = show is False
        if show is None:
            show = sys.stderr.isatty()
        if show:
            self._bar, self._task = _bar(steps, done, lambda: self._words)
            self._bar.start()

    def show(self, step: int, values: dict[str, float] | None = None) -> None:
        """The state after ``step``; ``values`` are what was logged there, if anything was."""
        if values is not None:
            self._words = self._newest = "  ".join(f"{name} {value:,.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
            return
        now = time.monotonic()
        passed = now - self._spoke
        # With new metrics if there are any soon; without them rather than not at all.
        if not self._silent and passed >= (SECONDS_BETWEEN_LINES if values is not None else LONGEST_SILENCE):
            self._spoke = now
            left = (now - self._started) / max(1, step - self._first) * (self.steps - step)
            words = [f"step {step}/{self.steps}", *filter(None, [self._newest]), f"ETA {duration(left)}"]
            self._newest = ""
            log.info("%s", "  ".join(words))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _bar(steps: int, done: int, words: Callable[[], str]) -> tuple[Any, Any]:
    """A bar that has a line to itself, above one of ``words``: together they would not fit into 80 columns."""
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TimeRemainingColumn
    from rich.text import Text

    class Bar(Progress):
        def get_renderables(self) -> Iterator[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            if shown := words():
                yield Text(shown, no_wrap=True, overflow="ellipsis")

    columns: list[str | ProgressColumn] = ["train", BarColumn(bar_width=None), MofNCompleteColumn(), "ETA"]
    bar = Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), expand=True)
    return bar, bar.add_task("train", total=steps, completed=done)
