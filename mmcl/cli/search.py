"""mmcl search."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from mmcl.cli.output import JsonPath, print_table, write_json
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")


def search(
    index: Annotated[Path, typer.Argument(help="An index folder.", show_default=False)],
    queries: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[QUERY ...]",
            help="Texts, or paths of image files; without any, a line of input is a query.",
            show_default=False,
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Results for each query.")] = 10,
    text: Annotated[
        bool, typer.Option("--text", help="Take every query for text, also if a file is called so.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="The encoder of the queries.", show_default="the one the index was made with")
    ] = None,
    tower: Annotated[
        str | None,
        typer.Option(help="The tower of the queries, if the model has several of a kind.", show_default=False),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(help="Queries are ids of rows here, such as users: a file, folder or name.", show_default=False),
    ] = None,
    split: Annotated[str | None, typer.Option(help="The part of --rows to read.")] = None,
    id: Annotated[
        str | None, typer.Option(help="The column of these ids.", show_default="id, _id, or row numbers")
    ] = None,
    without: Annotated[
        str | None,
        typer.Option(help="A column of --rows that lists ids to leave out, such as a history.", show_default=False),
    ] = None,
    json: JsonPath = None,
) -> None:
    """Search an index with words, images, or rows of a table."""
    from mmcl.data.sources import open_source
    from mmcl.retrieval.search import Search

    opened = Search(index, model, tower)
    table = None if rows is None else open_source(rows, split=split)
    answers: dict[str, Any] = {}
    for some in [queries] if queries else _lines():
        try:
            if table is None:
                found = opened.answers(some, k, as_text=text)
            else:
                found = opened.answers_to_rows(table, some, k, ids=id, without=without)
        except MmclError as error:
            if queries or not sys.stdin.isatty():
                raise
            log.error("error: %s", error)  # and the next one is asked for
            continue
        answers |= found
        for query, hits in found.items():
            lines = [[hit["rank"], hit["score"], hit["id"], hit["label"] or ""] for hit in hits]
            labelled = any(line[3] for line in lines)
            columns = ["rank", "score", "id", "label"]
            shown = lines if labelled else [line[:3] for line in lines]
            print_table(columns if labelled else columns[:3], shown, title=query)
        sys.stdout.flush()  # whoever asks through a pipe waits for it
    write_json(json, answers)


def _lines() -> Iterator[list[str]]:
    """The lines of standard input that are not blank, each alone; on a terminal they are asked for."""
    asked = sys.stdin.isatty()
    if asked:
        import readline  # noqa: F401  # gives input() its editing keys and history

        log.info("a query a line; Ctrl-D ends")
    elif isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        try:
            line = _ask() if asked else next(sys.stdin)
        except StopIteration:
            return
        except (EOFError, KeyboardInterrupt) as ended:
            print(file=sys.stderr)  # noqa: T201  # the prompt stays on a line of its own
            if isinstance(ended, EOFError):
                return
            raise
        if line.strip():
            yield [line.strip()]


def _ask() -> str:
    """A line that is typed; what goes into a file or a pipe are the answers alone."""
    if sys.stdout.isatty():
        return input("query> ")
    print("query> ", end="", file=sys.stderr, flush=True)  # noqa: T201
    return input()
