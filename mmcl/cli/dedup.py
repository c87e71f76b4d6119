"""mmcl dedup."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcl.cli.options import Device, Dtype, ImageRoot, Separator, Split, load, names_columns
from mmcl.cli.output import JsonPath, print_table, say, write_json

if TYPE_CHECKING:
    from mmcl.encoding import FileVectors, Vectors
    from mmcl.retrieval.similar.duplicates import Duplicates

Target = Annotated[
    str,
    typer.Argument(
        metavar="VECTORS|MODEL", help="Vectors that `mmcl encode` wrote; or a model, with SOURCE.", show_default=False
    ),
]
ToEncode = Annotated[
    str | None, typer.Argument(metavar="[SOURCE]", help="Rows to encode with the model first.", show_default=False)
]
Column = Annotated[str | None, typer.Option(help="What to encode of SOURCE.", show_default="image, else text")]
Rows = Annotated[
    str | None,
    typer.Option(help="The rows that the vectors are of, for their columns.", show_default="what was encoded"),
]
IdColumn = Annotated[str | None, typer.Option(help="The column of ids there.", show_default="id, _id, or row numbers")]


Folder = Annotated[Path, typer.Option(help="The folder to write.", show_default=False)]
Threshold = Annotated[
    float | None,
    typer.Option(help="Smallest cosine of duplicates.", show_default="the model's, if measured, else 0.95"),
]
Precision = Annotated[
    float | None,
    typer.Option(help="The threshold that `mmcl eval threshold` measured at it.", show_default=False),
]
Against = Annotated[
    str | None,
    typer.Option(
        help="Vectors of other rows, such as training data: which rows have a duplicate there.", show_default=False
    ),
]
Kept = Annotated[
    str,
    typer.Option(help="Of duplicates: first, central, or the column whose highest value stays."),
]
ByIndex = Annotated[bool, typer.Option("--index", help="Search an index: faster for millions of rows, may miss some.")]


@names_columns
def dedup(
    target: Target,
    out: Folder,
    source: ToEncode = None,
    threshold: Threshold = None,
    precision: Precision = None,
    against: Against = None,
    keep: Kept = "first",
    by_index: ByIndex = False,
    column: Column = None,
    rows: Rows = None,
    id: IdColumn = None,
    split: Split = None,
    separator: Separator = None,
    image_root: ImageRoot = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: JsonPath = None,
) -> None:
    """Find near-duplicates, and say which rows to keep."""
    from mmcl.data.sources.tar.rows import open_rows
    from mmcl.encoding import open_vectors
    from mmcl.retrieval.similar.corpus import column_of_vectors, match_threshold
    from mmcl.retrieval.similar.duplicates import find_duplicates
    from mmcl.retrieval.similar.pairs import check_threshold

    if threshold is not None:
        check_threshold(threshold)  # before the work
    table = None if (of := source or rows) is None else open_rows(of, split=split, separator=separator, root=image_root)
    vectors = vectors_of(target, table if source else None, column, out, id, device, dtype)
    values: Any = keep if keep in ("first", "central") else column_of_vectors(vectors, keep, table, ids=id)
    found = find_duplicates(
        vectors,
        out,
        match_threshold(vectors, precision) if threshold is None else threshold,
        against=open_vectors(against) if against else None,
        keep=values,
        by_index=by_index,
    )
    write_json(json, asdict(found))
    _show(found)


def vectors_of(
    target: str, rows: Any, column: str | None, out: Path, id: str | None, device: str, dtype: str
) -> Vectors | FileVectors:
    """The vectors in ``target``; or, of rows, what the model ``target`` makes of them, in ``out/vectors``."""
    from mmcl.encoding import open_vectors
    from mmcl.retrieval.similar.corpus import encoded

    if rows is None:
        return open_vectors(target)
    return encoded(load(target, device, dtype), rows, column, out / "vectors", ids=id)


def _show(found: Duplicates) -> None:
    lines: list[list[object]] = [["vectors", f"{found.rows:,}"], ["threshold", found.threshold]]
    if found.against is not None:
        lines += [["compared with", f"{found.against:,}"]]
    lines += [["pairs", f"{found.pairs:,}"]]
    if found.clusters is not None:
        lines += [["clusters", f"{found.clusters:,}"]]
    lines += [["to remove", f"{found.removed:,}"], ["to keep", f"{found.kept:,}"]]
    print_table(["near-duplicates", ""], lines)
    if found.largest:
        labelled = "label" in found.largest[0]
        columns = ["kept", "rows", "label"] if labelled else ["kept", "rows"]
        print_table(
            columns, [[each["id"], each["size"], each.get("label") or ""][: len(columns)] for each in found.largest]
        )
    if found.written_pairs < found.pairs:
        say(f"{found.written_pairs:,} of the pairs are written; all are counted")
    say(f"{found.folder}: kept.parquet, pairs.parquet" + ("" if found.clusters is None else ", clusters.parquet"))
