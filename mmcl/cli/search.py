"""mmcl search, and mmcl index lexical, which adds the words that its hybrid search needs."""

from __future__ import annotations

import csv
import io
import json as json_text
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmcl.cli.options import Device, Dtype
from mmcl.cli.output import JsonPath, print_table, say, write_json
from mmcl.runtime.errors import MmclError
from mmcl.runtime.printable import printable

if TYPE_CHECKING:
    from mmcl.retrieval import Result, Searcher

log = logging.getLogger("mmcl")

# What JSON lets stand that acts on a terminal.
_ACTIVE = re.compile("[\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


IndexFolder = Annotated[Path, typer.Argument(help="An index folder.", show_default=False)]
Queries = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[QUERY ...]",
        help="Texts, or paths of image files; without any, a line of input is a query.",
        show_default=False,
    ),
]
Count = Annotated[int, typer.Option("-k", min=1, help="Results for each query.")]
AsText = Annotated[bool, typer.Option("--text", help="Take every query for text, also if a file is called so.")]
LikeIds = Annotated[list[str] | None, typer.Option(help="An id of the index: find more like it. May be repeated.")]
Mix = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PART[:WEIGHT]",
        help="A part of one mixed query: a text, an image file or id=ID, and its weight, below 0 for what it "
        "should not be: --mix 'red shoe' --mix photo.jpg:0.5 --mix leather:-0.4",
        show_default=False,
    ),
]
Where = Annotated[
    str | None,
    typer.Option(help="A condition on the index's columns: \"category = 'shoes' and price < 50\".", show_default=False),
]
Hybrid = Annotated[
    bool, typer.Option("--hybrid", help="Search the words as well (mmcl index lexical adds them), and fuse.")
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Of --hybrid: rrf (by ranks), or the weights of vectors and words, as 0.7,0.3.",
        show_default="the weights that mmcl eval hybrid learned, else rrf",
    ),
]
Match = Annotated[
    str | None,
    typer.Option(
        metavar="PRECISION|best",
        help="Only what is the same thing, by the threshold that mmcl eval threshold measured: at a precision, or "
        "that of the best F1.",
        show_default=False,
    ),
]
QueryModel = Annotated[
    str | None, typer.Option(help="The encoder of the queries.", show_default="the one the index was made with")
]
QueryTower = Annotated[
    str | None,
    typer.Option(help="The tower of the queries, if the model has several of a kind.", show_default=False),
]
QueryRows = Annotated[
    str | None,
    typer.Option(help="Queries are ids of rows here, such as users: a file, folder or name.", show_default=False),
]
QuerySplit = Annotated[str | None, typer.Option(help="The part of --rows to read.")]
IdColumn = Annotated[str | None, typer.Option(help="The column of these ids.", show_default="id, _id, or row numbers")]
Without = Annotated[
    str | None,
    typer.Option(help="A column of --rows that lists ids to leave out, such as a history.", show_default=False),
]
Format = Annotated[Literal["table", "jsonl", "csv"], typer.Option(help="Of the results: a table, or a line a result.")]
Page = Annotated[Path | None, typer.Option(help="Also write a page with thumbnails.", show_default=False)]
ImageRows = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE[#SPLIT]",
        help="Of --html: the rows whose images the results are, by their ids.",
        show_default="files that labels or columns name",
    ),
]
ImageColumn = Annotated[str, typer.Option(help="The column of --images.")]


def search(
    index: IndexFolder,
    queries: Queries = None,
    k: Count = 10,
    text: AsText = False,
    like: LikeIds = None,
    mix: Mix = None,
    where: Where = None,
    hybrid: Hybrid = False,
    fusion: Weights = None,
    match: Match = None,
    model: QueryModel = None,
    tower: QueryTower = None,
    rows: QueryRows = None,
    split: QuerySplit = None,
    id: IdColumn = None,
    without: Without = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    format: Format = "table",
    html: Page = None,
    images: ImageRows = None,
    image_column: ImageColumn = "image",
    json: JsonPath = None,
) -> None:
    """Search an index with words, images, ids of its own, mixes of these, or rows of a table."""
    from mmcl.retrieval import Searcher
    from mmcl.retrieval.search.fusion import Fusion
    from mmcl.retrieval.search.matching import parse_match

    if rows is None and (id or without or split):
        raise MmclError("--id, --without and --split are of --rows; name these too")
    if rows is not None and (hybrid or fusion or match or like or mix or text):
        raise MmclError("--rows are searched by alone, as rows: leave out --hybrid, --match, --like, --mix and --text")
    if images is not None and html is None:
        raise MmclError(f"--images {images}: is of the page; give --html too")
    fused: Any = Fusion.parse(fusion) if fusion is not None else hybrid
    same = parse_match(match) if match is not None else False
    table = None if rows is None else _rows(rows, split)
    image_of = None if images is None else _images(images, image_column)
    searcher = Searcher(index, model, tower=tower, device=device, dtype=dtype)
    printer = _Printer(format)
    asked: list[Any] = []
    answers: list[list[Result]] = []
    for some in _asked(searcher, queries, like, mix, text):
        try:
            if table is not None:
                found = searcher.search_rows(table, some, k, ids=id, without=without, where=where)
            else:
                modality = "text" if text else None
                found = searcher.search(some, k, where=where, hybrid=fused, match=same, modality=modality)
        except MmclError as error:
            if queries or like or mix or not sys.stdin.isatty():
                raise
            log.error("error: %s", error)  # and the next one is asked for
            continue
        printer.show(some, found)
        if html is not None or json is not None:  # lines of input may have no end
            asked += some
            answers += found
    if html is not None:
        from mmcl.reports import write_search_page

        write_search_page(html, asked, answers, title=f"Search in {index}", image_of=image_of)
        log.info("%s: written", html)
    write_json(json, _by_name(asked, answers))


Texts = Annotated[
    str, typer.Argument(help="Rows with the texts of its things: a file, folder or name.", show_default=False)
]
TextColumns = Annotated[
    list[str] | None, typer.Option(help="A column of texts; several are joined.", show_default="text")
]
TextIds = Annotated[
    str | None, typer.Option(help="The column of ids, those of the index.", show_default="id, _id, or row numbers")
]
TextSplit = Annotated[str | None, typer.Option(help="The part of the source to read.")]
Language = Annotated[str, typer.Option(help="Whose stop words and endings are left out; none for neither.")]


def lexical(
    index: Annotated[Path, typer.Argument(help="An index folder.", show_default=False)],
    source: Texts,
    column: TextColumns = None,
    id: TextIds = None,
    split: TextSplit = None,
    language: Language = "english",
) -> None:
    """Add the words of its things to an index, for mmcl search --hybrid and mmcl eval hybrid."""
    from mmcl.retrieval.search import add_words, check_language, texts_of_rows

    check_language(language)  # before the work
    rows = _rows(source, split)
    texts = texts_of_rows(rows, column or ["text"])
    words = add_words(index, texts, rows.ids(id), language=language, source=rows.name)
    say(f"{words.info()['words']:,} words of {len(words):,} texts beside {index}")


class _Printer:
    """Results on stdout, in one of the formats."""

    def __init__(self, format: str) -> None:
        self._format, self._begun = format, False

    def show(self, queries: Sequence[Any], results: Sequence[Sequence[Result]]) -> None:
        """Those of each query, at once: whoever asks through a pipe waits for it."""
        from mmcl.retrieval.search.queries import shown

        for query, found in zip(queries, results, strict=True):
            {"table": self._table, "jsonl": self._lines, "csv": self._csv}[self._format](shown(query), found)
            self._begun = True
        sys.stdout.flush()

    def _table(self, name: str, results: Sequence[Result]) -> None:
        columns = list(dict.fromkeys(column for result in results for column in result.columns))
        labelled = any(result.label for result in results)
        head = ["rank", "score", "id", *(["label"] if labelled else []), *columns]
        rows = [
            [result.rank, result.score, result.id, *([result.label or ""] if labelled else [])]
            + [_cell(result.columns.get(column)) for column in columns]
            for result in results
        ]
        print_table(head, rows, title=name)

    def _lines(self, name: str, results: Sequence[Result]) -> None:
        for result in results:
            line = json_text.dumps({"query": name} | result.to_dict(), ensure_ascii=False, default=str)
            sys.stdout.write(_ACTIVE.sub(lambda found: f"\\u{ord(found[0]):04x}", line) + "\n")

    def _csv(self, name: str, results: Sequence[Result]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self._begun:
            writer.writerow(["query", "rank", "score", "id", "label", *(results[0].columns if results else ())])
        for result in results:
            writer.writerow([name, result.rank, result.score, result.id, result.label, *result.columns.values()])
        sys.stdout.write(printable(text.getvalue()))


def _asked(
    searcher: Searcher, queries: list[str] | None, like: list[str] | None, mix: list[str] | None, text: bool
) -> Iterator[list[Any]]:
    """Queries that are searched together: all of the command line, or a line of input each."""
    from mmcl.retrieval.search.queries import Like, parse_mix, text_or_image

    known = {"text"} if text else searcher.encoder.modalities
    if queries or like or mix:
        mixed = [parse_mix(mix, known)] if mix else []
        texts = queries or [] if text else [text_or_image(query, known) for query in queries or []]
        yield [*texts, *(Like(name) for name in like or []), *mixed]
        return
    for line in _lines():
        yield [line if text else text_or_image(line, known)]


def _by_name(asked: Sequence[Any], answers: Sequence[Sequence[Result]]) -> dict[str, list[dict[str, Any]]]:
    from mmcl.retrieval.search.queries import shown

    pairs = zip(asked, answers, strict=True)
    return {shown(query): [result.to_dict() for result in results] for query, results in pairs}


def _images(named: str, column: str) -> Any:
    """From an id to its image in the rows of ``SOURCE#SPLIT``."""
    from mmcl.reports import images_of_rows

    source, _, split = named.partition("#")
    return images_of_rows(_rows(source, split or None), column)


def _rows(source: str, split: str | None) -> Any:
    """The rows of a source; its libraries, which most searches need not, take a second to import."""
    from mmcl.data.sources import open_source

    return open_source(source, split=split)


def _cell(value: Any) -> Any:
    return "" if value is None else value


def _lines() -> Iterator[str]:
    """The lines of standard input that are not blank; on a terminal they are asked for."""
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
            yield line.strip()


def _ask() -> str:
    """A line that is typed; what goes into a file or a pipe are the answers alone."""
    if sys.stdout.isatty():
        return input("query> ")
    print("query> ", end="", file=sys.stderr, flush=True)  # noqa: T201
    return input()
