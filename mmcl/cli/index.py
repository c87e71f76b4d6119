"""mmcl index."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcl.cli.output import JsonPath, print_table, say, write_json
from mmcl.runtime.errors import MmclError

if TYPE_CHECKING:
    from mmcl.data.rows import Rows

app = typer.Typer(rich_markup_mode=None, help="Build, change and inspect indexes of vectors.", no_args_is_help=True)

Vectors = Annotated[
    Path, typer.Argument(help="Vectors: of `mmcl encode`, .npy, Parquet, clip-retrieval's.", show_default=False)
]
IndexFolder = Annotated[Path, typer.Argument(metavar="INDEX", help="An index folder.", show_default=False)]
From = Annotated[
    str | None,
    typer.Option("--from", help="Where the columns are: rows with the vectors' ids.", show_default=False),
]
Split = Annotated[str | None, typer.Option(help="The part of --from to read.")]
Id = Annotated[str | None, typer.Option(help="The column of ids there.", show_default="id, _id, or row numbers")]


NewFolder = Annotated[Path, typer.Option(help="The index folder.", show_default=False)]
Spec = Annotated[
    str,
    typer.Option(help="A FAISS factory string, auto is exact up to some size; of Milvus such as HNSW,M=16."),
]
Similarity = Annotated[str, typer.Option(help="cosine, dot or euclidean.")]
Recall = Annotated[float, typer.Option(help="Share of the ten nearest that an approximate index is to find.")]
Memory = Annotated[float | None, typer.Option(min=0, help="GiB that an auto index may take.", show_default="no limit")]
QueryVectors = Annotated[
    Path | None,
    typer.Option(
        help="Vectors of queries like those to come, by which recall is measured, such as texts for images.",
        show_default=False,
    ),
]
MetaColumns = Annotated[
    str | None,
    typer.Option(
        help="Columns to keep beside the vectors, for conditions of searches: category,price:number,added:time.",
        show_default=False,
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        help="What holds the vectors: faiss, milvus, disk (exact, reads them where they are), or a plug-in's."
    ),
]
Uri = Annotated[
    str | None,
    typer.Option(help="Where Milvus is: http://HOST:PORT, or FILE.db for Milvus Lite.", show_default=False),
]


@app.command()
def build(
    vectors: Vectors,
    out: NewFolder,
    spec: Spec = "auto",
    similarity: Similarity = "cosine",
    recall: Recall = 0.95,
    memory: Memory = None,
    queries: QueryVectors = None,
    columns: MetaColumns = None,
    source: From = None,
    split: Split = None,
    id: Id = None,
    to: Engine = "faiss",
    uri: Uri = None,
) -> None:
    """Index the vectors of a folder."""
    from mmcl.encoding import open_vectors
    from mmcl.retrieval.index import INDEXES, check_free, save_alone
    from mmcl.retrieval.metadata import source_columns

    if (columns is None) != (source is None):
        raise MmclError("--columns and --from go together: which columns, and the rows that have them")
    if uri is not None and "uri" not in signature(INDEXES[to].build).parameters:
        raise MmclError(f"--uri {uri}: is of a Milvus server; give --to milvus too")
    if queries is not None and to != "faiss":
        raise MmclError(f"--queries {queries}: only an index of faiss is tuned to them, not one of {to}")
    check_free(out)  # before the work
    stored, asked = open_vectors(vectors), None if queries is None else open_vectors(queries)
    kept = None
    if columns is not None and source is not None:
        kept = source_columns(_rows(source, split), columns.split(","), stored.table()["id"], id)
    place: dict[str, Any] = {} if uri is None else {"uri": uri}
    index = INDEXES[to].build(
        stored,
        spec=spec,
        similarity=similarity,  # type: ignore[arg-type]
        columns=kept,
        recall=recall,
        memory=None if memory is None else int(memory * 2**30),
        **place,
    )
    if asked is not None:
        index.tune(asked, stored)  # type: ignore[attr-defined]  # which FAISS has
    save_alone(index, out)
    _print_info(index.info())


@app.command()
def add(
    index: IndexFolder,
    vectors: Vectors,
    source: From = None,
    split: Split = None,
    id: Id = None,
    upsert: Annotated[
        bool, typer.Option("--upsert", help="Put them in the place of vectors of the same ids, if there are any.")
    ] = False,
) -> None:
    """Add the vectors of a folder to an index; killed at any moment, it leaves the old index or the new one."""
    from mmcl.encoding import open_vectors
    from mmcl.retrieval.index import changing
    from mmcl.retrieval.metadata import columns_to_add

    stored = open_vectors(vectors)
    with changing(index) as changed:
        rows = None if source is None else _rows(source, split)
        columns = columns_to_add(changed.info()["columns"], stored, rows, id)
        before = len(changed)
        (changed.upsert if upsert else changed.add)(stored, stored.ids(), columns=columns)
        replaced = before + len(stored) - len(changed)
    place = f" in the place of {replaced:,}" if upsert else ""
    say(f"added {len(stored):,}{place}; {len(changed):,} vectors in {index}")


@app.command()
def remove(
    index: IndexFolder,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID ...]", show_default=False)] = None,
    file: Annotated[Path | None, typer.Option(help="A file of ids, one a line.", show_default=False)] = None,
) -> None:
    """Remove vectors from an index by their ids."""
    from mmcl.retrieval.index import changing

    if (ids is None) == (file is None):
        raise MmclError("name the ids to remove, or a --file of them")
    wanted = ids if file is None else _lines(file)
    with changing(index) as changed:
        before = len(changed)
        changed.remove(wanted or [])
    say(f"removed {before - len(changed):,}; {len(changed):,} vectors in {index}")


@app.command()
def info(index: IndexFolder, json: JsonPath = None) -> None:
    """Say what an index holds and how it was built."""
    from mmcl.retrieval import open_index

    about = open_index(index).info()
    write_json(json, about)
    _print_info(about)


def _rows(source: str, split: str | None) -> Rows:
    from mmcl.data.sources import open_source

    return open_source(source, split=split)


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise MmclError(f"--file {file}: cannot be read ({error})") from None


def _print_info(about: dict[str, Any]) -> None:
    shown = {key: value for key, value in about.items() if value is not None and key not in ("encoder", "curve")}
    shown["columns"] = ", ".join(f"{name} ({kind})" for name, kind in (shown.get("columns") or {}).items()) or "none"
    print_table(["index", ""], [[key, value] for key, value in shown.items()])
    if about.get("curve"):
        print_table(["effort", "recall@10", "queries/s"], about["curve"])
