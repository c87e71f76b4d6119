"""mmcl vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mmcl.cli.output import JsonPath, print_table, say, write_json

app = typer.Typer(rich_markup_mode=None, help="Inspect, check, join and convert vectors on disk.", no_args_is_help=True)

Path_ = Annotated[
    Path,
    typer.Argument(
        metavar="VECTORS",
        help="A folder of `mmcl encode`, a .npy or .parquet file, a folder of these, or clip-retrieval's.",
        show_default=False,
    ),
]
Column = Annotated[
    str | None,
    typer.Option(help="Of Parquet files, the column of vectors.", show_default="embedding, or the only one"),
]


@app.command()
def info(vectors: Path_, column: Column = None, json: JsonPath = None) -> None:
    """Say what vectors are: how many, of which model and source."""
    from mmcl.encoding import open_vectors
    from mmcl.encoding.vector_files.examine import info

    about = info(open_vectors(vectors, partial=True, column=column))
    write_json(json, about)
    shown = about | {"encoder": about["encoder"] and about["encoder"]["weights"]}
    print_table(["vectors", ""], [[key, _plain(value)] for key, value in shown.items() if value not in (None, {})])


@app.command()
def verify(vectors: Path_, column: Column = None, json: JsonPath = None) -> None:
    """Read all vectors and ids: checksums, shapes, NaN, lengths, ids that occur twice."""
    from mmcl.encoding import open_vectors
    from mmcl.encoding.vector_files.examine import verify

    found = verify(open_vectors(vectors, column=column))
    write_json(json, found)
    say(f"{vectors}: {found['vectors']:,} vectors of {found['dim']} dimensions, all read, all finite")
    say(f"  {found['unit']:,} of unit length, {found['zero']:,} of length 0")
    examples = ", ".join(map(str, found["examples"]))
    say(f"  {found['duplicates']:,} with the id of an earlier one" + (f", such as {examples}" if examples else ""))


Several = Annotated[
    list[Path], typer.Argument(metavar="VECTORS...", help="Folders or files of one model.", show_default=False)
]
MergedFolder = Annotated[Path, typer.Option(help="A new folder.", show_default=False)]
Duplicates = Annotated[
    Literal["refuse", "first", "prefix"],
    typer.Option(
        help="Ids in several of them: refuse, keep the first one's vectors, or prefix all ids: books/17.",
    ),
]


@app.command()
def merge(
    vectors: Several,
    out: MergedFolder,
    duplicates: Duplicates = "refuse",
    column: Column = None,
) -> None:
    """Join vectors of one model in a folder as `mmcl encode` writes it."""
    from mmcl.encoding import open_vectors
    from mmcl.encoding.vector_files.merge import merge

    merge([open_vectors(path, column=column) for path in vectors], out, duplicates=duplicates)
    merged = open_vectors(out)
    say(f"{len(merged):,} vectors of {merged.dim} dimensions in {out}")


To = Annotated[Literal["npy", "parquet", "clip-retrieval"], typer.Option(help="The format.", show_default=False)]
ExportPath = Annotated[
    Path, typer.Option(help="A file ending in .npy or .parquet, or a folder of several.", show_default=False)
]


@app.command()
def export(
    vectors: Path_,
    to: To,
    out: ExportPath,
    column: Column = None,
) -> None:
    """Write vectors as other programs read them, with ids and other columns."""
    from mmcl.encoding import open_vectors
    from mmcl.encoding.vector_files.export import export

    opened = open_vectors(vectors, column=column)
    export(opened, out, to)
    say(f"{len(opened):,} vectors of {opened.dim} dimensions in {out}")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {entry}" for key, entry in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
