"""The command ``mmcl``: its commands, and what becomes of errors."""

from __future__ import annotations

import errno
import logging
import os
import sys
from typing import Any, TextIO

import typer
from typer.core import TyperGroup

from mmcl import __version__
from mmcl.cli import config, data, encode, evaluate, export, index, quickstart, tokenizer, train
from mmcl.runtime.errors import MmclError


class _StoppedError(Exception):
    """Ctrl-C, as typer lets it pass."""


class _Commands(TyperGroup):
    """Typer ends an interrupted command without a word; here it is told as any other end is."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _StoppedError(str(error) or "interrupted; what is on disk is whole") from error


app = typer.Typer(
    name="mmcl",
    cls=_Commands,
    help="Train, use and judge contrastive embeddings: images with text, sentences, images alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("quickstart")(quickstart.quickstart)
app.command("train")(train.train)
app.command("encode")(encode.encode)
app.add_typer(index.app, name="index")
app.command("search")(index.search)
app.add_typer(evaluate.app, name="eval")
app.command("export")(export.export)
app.add_typer(data.app, name="data")
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(config.app, name="config")


@app.callback(invoke_without_command=True)
def _top(
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error. Works after any command."),
) -> None:
    if version:
        print(f"mmcl {__version__}")
        raise typer.Exit


class _ToStderr(logging.StreamHandler[TextIO]):
    """Looks up stderr anew for each line: a progress bar replaces it while it shows."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def main() -> None:
    """Run the command line. Exit code 2 is a mistake that the user can mend, told in one line."""
    debug = "--debug" in sys.argv or bool(os.environ.get("MMCL_DEBUG"))
    logger = logging.getLogger("mmcl")
    logger.addHandler(_ToStderr())
    logger.setLevel(logging.INFO)
    logger.propagate = False  # some libraries give the root logger a handler of their own
    try:
        sys.exit(app([argument for argument in sys.argv[1:] if argument != "--debug"]))
    except (MmclError, OSError, _StoppedError) as error:
        if debug:
            raise
        message, code = _told(error)
        print(message, file=sys.stderr)
        sys.exit(code)


def _told(error: BaseException) -> tuple[str, int]:
    """One line and an exit code for an error."""
    if isinstance(error, MmclError):
        return f"error: {error}", error.exit_code
    if isinstance(error, _StoppedError):
        return str(error), 130
    if isinstance(error, BrokenPipeError):
        return "", 0
    name = getattr(error, "filename", None)
    where = f" ({name})" if name else ""
    if getattr(error, "errno", None) == errno.ENOSPC:
        cure = "make room, then run the same command again (a training run with --resume)"
        return f"error: the disk is full{where}; {cure}", 2
    return f"error: {error}; --debug shows where", 2
