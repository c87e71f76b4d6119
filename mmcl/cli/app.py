"""The command ``mmcl``: its commands, and what becomes of errors."""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import Any, TextIO

import typer
from typer.core import TyperGroup

from mmcl.cli import (
    cluster,
    config,
    data,
    dedup,
    encode,
    index,
    mine,
    models,
    quickstart,
    search,
    tokenizer,
    train,
    vectors,
)
from mmcl.cli.ends import end, prepare_streams
from mmcl.cli.evaluate import app as evaluate
from mmcl.cli.output import say
from mmcl.runtime.errors import nearest
from mmcl.runtime.printable import fitted, printable
from mmcl.runtime.version import __version__

_NO_CHOICE = re.compile(r"'(?P<value>.*?)' is not one of (?P<known>.*)\.")


class _StoppedError(Exception):
    """Carries what typer would make an end of in its own way."""


class _Commands(TyperGroup):
    """Typer ends an interrupted command, or one whose output nobody reads, without a word; here both are reported."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, EOFError, OSError) as error:
            raise _StoppedError from error
        except Exception as error:
            _explain_usage(error)
            raise


def _explain_usage(error: Any) -> None:
    """Put what typer says of an option into plain words, and name the option that was meant."""
    if isinstance(error, typer.BadParameter):
        error.message = error.message.removeprefix("Value error, ")
        if choice := _NO_CHOICE.fullmatch(error.message):
            meant = nearest(choice["value"], re.findall("'([^']+)'", choice["known"]))
            error.message += f" {meant[0].upper()}{meant[1:]}" if meant.startswith("did you mean") else ""
    elif getattr(error, "option_name", None) in ("--image", "--text") and error.ctx is not None:
        options = {option for parameter in error.ctx.command.params for option in parameter.opts}
        error.possibilities = [*(["--column"] if "--column" in options else error.possibilities or [])]


app = typer.Typer(
    name="mmcl",
    rich_markup_mode=None,  # plain help wraps between words at every width
    cls=_Commands,
    help="Train, use and judge contrastive embeddings: images with text, sentences, images alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("quickstart", short_help="Train, encode, index, evaluate and search on sample data.")(quickstart.quickstart)
app.command("train", short_help="Train what a config describes.")(train.train)
app.command("encode")(encode.encode)
app.add_typer(vectors.app, name="vectors")
app.add_typer(index.app, name="index")
index.app.command("lexical")(search.lexical)
app.command("search")(search.search)
app.add_typer(evaluate.app, name="eval")
app.command("mine", short_help="Find hard negatives or paraphrases, as a file to train on.")(mine.mine)
app.command("dedup", short_help="Find near-duplicates, within a corpus or between two.")(dedup.dedup)
app.command("cluster", short_help="Group rows by their vectors, and draw a map.")(cluster.cluster)
app.command("models", short_help="List what a config can name, of plug-ins as well.")(models.models)
app.command("export", short_help="Write a model as a folder that another library opens.")(models.export)
app.add_typer(data.app, name="data")
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(config.app, name="config")


@app.callback(invoke_without_command=True)
def _top(
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error. Works after any command."),
) -> None:
    if version:
        say(f"mmcl {__version__}")
        raise typer.Exit


class _ToStderr(logging.StreamHandler[TextIO]):
    """Looks up stderr anew for each line: a progress bar replaces it while it shows."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr

    def format(self, record: logging.LogRecord) -> str:
        return fitted(printable(super().format(record)), self.stream)


def main() -> None:
    """Run the command line. Exit code 2 is a mistake that the user can mend, said in one line."""
    prepare_streams()
    debug = "--debug" in sys.argv or bool(os.environ.get("MMCL_DEBUG"))
    logger = logging.getLogger("mmcl")
    if not any(isinstance(handler, _ToStderr) for handler in logger.handlers):  # in one process again
        logger.addHandler(_ToStderr())
    logger.setLevel(logging.INFO)
    logger.propagate = False  # some libraries give the root logger a handler of their own
    try:
        app([argument for argument in sys.argv[1:] if argument != "--debug"])
        code = end(None)
    except SystemExit as ended:
        code = end(None, ended.code if isinstance(ended.code, int) else int(ended.code is not None))
    except _StoppedError as stopped:
        code = end(stopped.__cause__, debug=debug)
    except BaseException as error:  # a panic of a library in Rust is no Exception
        code = end(error, debug=debug)
    sys.exit(code)
