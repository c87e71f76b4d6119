"""mmcl index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmcl.cli.output import JsonPath, print_table, write_json

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
    from mmcl.retrieval.faiss_index import check_free

    check_free(out)  # before the work
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


def _print_info(about: dict[str, Any]) -> None:
    print_table(["index", ""], [[key, value] for key, value in about.items() if value is not None and key != "encoder"])
