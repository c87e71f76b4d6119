"""mmcl index and mmcl search."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcl.cli.output import JsonPath, print_table, write_json
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")

if TYPE_CHECKING:
    from mmcl.models import Encoder
    from mmcl.retrieval import Index

app = typer.Typer(rich_markup_mode=None, help="Build and inspect FAISS indexes.", no_args_is_help=True)


@app.command()
def build(
    vectors: Annotated[Path, typer.Argument(help="A folder that `mmcl encode` wrote.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The index folder.", show_default=False)],
    spec: Annotated[str, typer.Option(help="A FAISS factory string; auto is exact up to some size.")] = "auto",
    similarity: Annotated[str, typer.Option(help="cosine, dot or euclidean.")] = "cosine",
) -> None:
    """Index the vectors of a folder."""
    from mmcl.encoding import open_vectors
    from mmcl.retrieval import Index

    index = Index.build(open_vectors(vectors), spec=spec, similarity=similarity)  # type: ignore[arg-type]
    index.save(out)
    _print_info(index.info())


@app.command()
def info(
    index: Annotated[Path, typer.Argument(help="An index folder.", show_default=False)], json: JsonPath = None
) -> None:
    """Say what an index holds and how it was built."""
    from mmcl.retrieval import Index

    about = Index.load(index).info()
    write_json(json, about)
    _print_info(about)


def search(
    index: Annotated[Path, typer.Argument(help="An index folder.", show_default=False)],
    queries: Annotated[
        list[str], typer.Argument(metavar="QUERY ...", help="Texts, or paths of image files.", show_default=False)
    ],
    k: Annotated[int, typer.Option("-k", min=1, help="Results for each query.")] = 10,
    model: Annotated[
        str | None, typer.Option(help="The encoder of the queries.", show_default="the one the index was made with")
    ] = None,
    json: JsonPath = None,
) -> None:
    """Search an index with words or pictures."""
    from mmcl.retrieval import Index

    opened = Index.load(index)
    name = model or opened.model
    if name is None:
        raise MmclError(f"{index}: it does not say which model made its vectors; name it with --model")
    import mmcl

    answers = _search(opened, mmcl.load(name), queries, k)
    write_json(json, answers)
    for query, hits in answers.items():
        rows = [[hit["rank"], hit["score"], hit["id"], hit["label"] or ""] for hit in hits]
        labelled = any(row[3] for row in rows)
        columns = ["rank", "score", "id", "label"]
        print_table(columns if labelled else columns[:3], rows if labelled else [row[:3] for row in rows], title=query)


def _search(index: Index, encoder: Encoder, queries: list[str], k: int) -> dict[str, list[dict[str, Any]]]:
    if encoder.dim != index.dim:
        raise MmclError(f"model '{encoder.name}' gives {encoder.dim} dimensions, the index has {index.dim}")
    inputs = [_query(query) for query in queries]
    ids, scores = index.search(encoder.encode(inputs, show_progress=False), k)
    answers = {}
    for query, found, how_near in zip(queries, ids.tolist(), scores.tolist(), strict=True):
        hits = zip(found, how_near, index.labels_of(found), strict=True)
        answers[query] = [
            {"rank": rank, "score": score, "id": name, "label": label}
            for rank, (name, score, label) in enumerate(hits, start=1)
        ]
    return answers


def _query(query: str) -> str | Path:
    """The path of a file that exists, or text; a picture that is missing is searched as text, but not in silence."""
    from mmcl.data.images import image_suffixes

    path = Path(query)
    if path.is_file():
        return path
    if path.suffix.lower() in image_suffixes() and " " not in query:
        log.warning("%s: there is no such file, so it is searched as text", query)
    return query


def _print_info(about: dict[str, Any]) -> None:
    print_table(["index", ""], [[key, value] for key, value in about.items() if value is not None])
