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
    """Show how far the block has come and yield ``advance(n)``.

    A bar where stderr is a terminal, or ``show`` asks for one; else a line every half a minute (:func:`spoken`), unless
    ``show`` is False. Nothing of it touches stdout, which belongs to results.
    """
    if show is None and not sys.stderr.isatty():
        with spoken(description, total, unit) as advance:
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
        """Of everything so far: that of the last moments is none where all comes in one step."""

        def render(self, task: Task) -> Text:
            elapsed = task.finished_time if task.finished_time is not None else task.elapsed
            return Text(f"{rate(task.completed, elapsed or 0.0)} {unit}/s", style="dim")

    def whole() -> Column:
        return Column(no_wrap=True)  # on one line at 80 columns, where the bar is what is left

    name = TextColumn("{task.description}", markup=False, table_column=whole())
    counts, rates, left = MofNCompleteColumn(table_column=whole()), Rate(whole()), TimeRemainingColumn()
    shown = [name, BarColumn(bar_width=None), counts, rates, left]
    with Progress(*shown, console=Console(stderr=True), expand=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda n: bar.advance(task, n)


@contextmanager
def spoken(description: str, total: int | None, unit: str = "rows") -> Iterator[Callable[[int], None]]:
    """Log a line every half a minute while the block runs, with what is done, the rate and the time left, and yield
    ``advance(n)``; a block that is done sooner says nothing."""
    started, done, ended = time.monotonic(), [0], threading.Event()

    def speak() -> None:
        while not ended.wait(SECONDS_BETWEEN_LINES):
            log.info(line(description, done[0], total, unit, time.monotonic() - started))

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()

    def advance(count: int) -> None:
        done[0] += count

    try:
        yield advance
    finally:
        ended.set()
        speaker.join()


def line(description: str, done: int, total: int | None, unit: str, seconds: float) -> str:
    """What is said of work that has taken so many seconds, such as ``tokenize: 5,000/20,000 rows, 1,000 rows/s, 15 s
    left``."""
    if not done:
        of = f"0/{total:,} {unit}, " if total else ""
        return f"{description}: {of}{duration(seconds)} so far"
    of = f"{done:,}/{total:,}" if total else f"{done:,}"
    left = f", {duration((total - done) * seconds / done)} left" if total else f", {duration(seconds)} so far"
    return f"{description}: {of} {unit}, {rate(done, seconds)} {unit}/s{left}"


def rate(done: float, seconds: float) -> str:
    """How many in a second, with as many digits as tell something."""
    value = done / seconds if seconds > 0 else 0.0
    return f"{value:,.0f}" if value >= 10 or not value else f"{value:.2g}"


def duration(seconds: float) -> str:
    """Seconds as people say them: 48 s, 3 min 12 s, 5 h 20 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
