"""Options of commands that read rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Separator = Annotated[
    str | None,
    typer.Option(
        help="The character between the fields of a CSV file.", show_default="what its head shows: , tab ; or |"
    ),
]
ImageRoot = Annotated[
    Path | None,
    typer.Option("--image-root", help="The folder that paths of images start from.", show_default="that of the table"),
]
