"""Progress on stderr: a bar with a rate and an estimate of the time left, or a line every half a minute."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 30.0
log = logging.getLogger("mmcl")


@contextmanager
def progress(
    description: str, total: int | None, unit: str = "rows", show: bool | None = None
) -> Iterator[Callable[[int], None]]:
    """Show the progress of the block on stderr and yield ``advance(n)``.

    A bar if stderr is a terminal or ``show`` is True; nothing if ``show`` is False; otherwise the log lines of
    :func:`log_progress`.
    """
    if show is None and not sys.stderr.isatty():
        with log_progress(description, total, unit) as advance:
            yield advance
        return
    if show is False:
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column
    from rich.text import Text

    class Rate(ProgressColumn):
        """The rate since the start: that of the last moments would be 0 where all items come in one step."""

        def render(self, task: Task) -> Text:
            elapsed = task.finished_time if task.finished_time is not None else task.elapsed
            return Text(f"{rate(task.completed, elapsed or 0.0)} {unit}/s", style="dim")

    def one_line() -> Column:
        return Column(no_wrap=True)  # at 80 columns, the bar gets what is left

    name = TextColumn("{task.description}", markup=False, table_column=one_line())
    counts, rates, left = MofNCompleteColumn(table_column=one_line()), Rate(one_line()), TimeRemainingColumn()
    columns = [name, BarColumn(bar_width=None), counts, rates, left]
    with Progress(*columns, console=Console(stderr=True), expand=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda n: bar.advance(task, n)


@contextmanager
def log_progress(description: str, total: int | None, unit: str = "rows") -> Iterator[Callable[[int], None]]:
    """Log a line every half a minute while the block runs, with the number done, the rate and the time left, and yield
    ``advance(n)``."""
    started, done, ended = time.monotonic(), [0], threading.Event()

    def log_lines() -> None:
        while not ended.wait(SECONDS_BETWEEN_LINES):
            log.info(progress_line(description, done[0], total, unit, time.monotonic() - started))

    thread = threading.Thread(target=log_lines, daemon=True)
    thread.start()

    def advance(count: int) -> None:
        done[0] += count

    try:
        yield advance
    finally:
        ended.set()
        thread.join()


def progress_line(description: str, done: int, total: int | None, unit: str, seconds: float) -> str:
    """A line about work that has taken ``seconds``: ``tokenize: 5,000/20,000 rows, 1,000 rows/s, 15 s left``."""
    if not done:
        of = f"0/{total:,} {unit}, " if total else ""
        return f"{description}: {of}{duration(seconds)} so far"
    of = f"{done:,}/{total:,}" if total else f"{done:,}"
    left = f", {duration((total - done) * seconds / done)} left" if total else f", {duration(seconds)} so far"
    return f"{description}: {of} {unit}, {rate(done, seconds)} {unit}/s{left}"


def rate(done: float, seconds: float) -> str:
    """A number per second, with as many digits as are significant."""
    value = done / seconds if seconds > 0 else 0.0
    return f"{value:,.0f}" if value >= 10 or not value else f"{value:.2g}"


def duration(seconds: float) -> str:
    """Seconds as text: 48 s, 3 min 12 s, 5 h 20 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
