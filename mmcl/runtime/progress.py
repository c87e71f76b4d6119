"""Progress on stderr: a bar with a rate and an estimate of the time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(
    description: str, total: int | None, unit: str = "rows", show: bool | None = None
) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs and yield ``advance(n)``.

    ``show=None`` shows it when stderr is a terminal; the bar never touches stdout, which belongs to results.
    """
    if show is None:
        show = sys.stderr.isatty()
    if not show:
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed or 0:,.0f} {unit}/s", style="dim")

    shown: list[str | ProgressColumn] = ["{task.description}", BarColumn(), MofNCompleteColumn(), Rate()]
    with Progress(*shown, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda n: bar.advance(task, n)
