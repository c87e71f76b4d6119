"""Results on stdout as tables, and as JSON in a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from mmcl.runtime import files
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import is_stdout
from mmcl.runtime.printable import fitted, printable

_numbers: ContextVar[TextIO | None] = ContextVar("numbers", default=None)
"""Standard output, in a command that writes its numbers there as JSON, and everything else to stderr."""

WIDTH_OF_FILES = 120
"""Columns of a table that goes into a file or a pipe; on a terminal, it is as wide as that."""
LONGEST_WORD = 20
"""Columns within which a word is not broken, if the terminal has them."""
SHORTEST_WORD = 8
"""The same on a terminal that is too narrow for the numbers."""


@contextmanager
def _only_numbers_on_stdout() -> Iterator[None]:
    token = _numbers.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _numbers.reset(token)


def checked_file(context: typer.Context, option: typer.CallbackParam, path: Path | None) -> Path | None:
    """``path`` of an option, looked at before anything is computed; if it is stdout, the tables go to stderr."""
    name = option.opts[0]
    if path is not None and path.is_dir():
        raise MmclError(f"{name} {path}: is a folder; name a file, or - for stdout")
    if path is not None and not path.exists():
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise MmclError(f"{name} {path}: nothing can be written in {above}; name another file")
    if path is not None and is_stdout(path):
        context.with_resource(_only_numbers_on_stdout())
    return path


JsonPath = Annotated[
    Path | None,
    typer.Option(
        "--json", help="Also write the numbers to a file; - is stdout.", show_default=False, callback=checked_file
    ),
]


def write_json(path: Path | None, values: Any) -> None:
    """Write ``values`` to ``path``, if there is one."""
    if path is not None:
        with redirect_stdout(_numbers.get() or sys.stdout):
            files.write_json(path, values)


def say(*lines: object) -> None:
    """Print lines to stdout, each made fit for a terminal (:func:`mmcl.runtime.printable.printable`)."""
    for line in lines:
        print(fitted(printable(str(line)), sys.stdout))  # noqa: T201


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """A table on stdout; columns after the first are aligned right where they hold numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    cells = [[_show(value) for value in row] for row in rows]
    # Printed apart, since rich would break it at the width of the table.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    of_numbers, words = [], []
    for number, column in enumerate(columns):
        shown = [row[number] for row in cells]
        numbers = number > 0 and all(value.strip("%–-+.,0123456789 ×") == "" for value in shown)
        parts = [column, *shown] if numbers else [word for value in (column, *shown) for word in value.split()]
        longest = max(map(len, parts), default=0)
        of_numbers.append(longest if numbers else min(longest, SHORTEST_WORD))
        words.append(longest if numbers else min(longest, LONGEST_WORD))
        table.add_column(
            printable(column),
            justify="right" if numbers else "left",
            overflow="fold",
            no_wrap=numbers,
            min_width=longest if numbers else None,
        )
    for row in cells:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else WIDTH_OF_FILES
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    # Where words would be broken, less stands between the columns. A number that is broken is read wrongly: rather lets
    # the terminal break the line.
    for between, padding in ((3, (0, 1)), (2, (0, 1, 0, 0)), (1, (0, 0))):
        table.padding = padding
        if sum(words) + between * (len(words) - 1) + 2 <= console.width:
            break
    console.width = max(console.width, sum(of_numbers) + between * (len(words) - 1) + 2)
    with console.capture() as captured:
        if title:
            console.print(printable(title))
        console.print(table)
    sys.stdout.write(captured.get())  # rich itself would end the process where nobody reads on


def _show(value: object) -> str:
    return f"{value:,.4f}" if isinstance(value, float) else printable(str(value))
