"""Results on stdout as tables, and as JSON in a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mmcl.runtime.files import atomic_file
from mmcl.runtime.printable import printable

WIDTH_OF_FILES = 120
"""Columns of a table that goes into a file or a pipe; on a terminal, it is as wide as that."""

JsonPath = Annotated[Path | None, typer.Option("--json", help="Also write the numbers to a file.", show_default=False)]


def write_json(path: Path | None, values: Any) -> None:
    """Write ``values`` to ``path``, if there is one."""
    if path is not None:
        with atomic_file(path) as beside:
            beside.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def say(*lines: object) -> None:
    """Print lines to stdout, each made fit for a terminal (:func:`mmcl.runtime.printable.printable`)."""
    for line in lines:
        print(printable(str(line)))  # noqa: T201


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """A table on stdout; columns after the first are aligned right where they hold numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    cells = [[_show(value) for value in row] for row in rows]
    # Printed apart, since rich would break it at the width of the table.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        numeric = all(row[number].strip("%–-+.,0123456789 ×") == "" for row in cells)
        table.add_column(printable(column), justify="right" if numeric and number else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else WIDTH_OF_FILES
    console = Console(highlight=False, markup=False, width=width)
    with console.capture() as captured:
        if title:
            console.print(printable(title))
        console.print(table)
    sys.stdout.write(captured.get())  # rich itself would end the process where nobody reads on


def _show(value: object) -> str:
    return f"{value:,.4f}" if isinstance(value, float) else printable(str(value))
