"""mmcl dedup."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mmcl.cli.options import Device, Dtype, ImageRoot, Separator, Split, names_columns
from mmcl.cli.output import JsonPath, print_table, say, write_json

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


@names_columns
def dedup(
    target: Target,
    out: Annotated[Path, typer.Option(help="The folder to write.", show_default=False)],
    source: ToEncode = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Smallest cosine of duplicates.", show_default="the model's, if measured, else 0.95"),
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(help="The threshold that `mmcl eval threshold` measured at it.", show_default=False),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Vectors of other rows, such as training data: which rows have a duplicate there.", show_default=False
        ),
    ] = None,
    keep: Annotated[
        str,
        typer.Option(help="Of duplicates: first, central, or the column whose highest value stays."),
    ] = "first",
    by_index: Annotated[
        bool, typer.Option("--index", help="Search an index: faster for millions of rows, may miss some.")
    ] = False,
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
    from mmcl.cli.options import load
    from mmcl.data.sources.tar.rows import open_rows
    from mmcl.encoding import open_vectors
    from mmcl.retrieval.similar.corpus import column_of_vectors, encoded, match_threshold
    from mmcl.retrieval.similar.duplicates import check_threshold, find_duplicates

    if threshold is not None:
        check_threshold(threshold)  # before the work
    of = source or rows
    opened = None if of is None else open_rows(of, split=split, separator=separator, root=image_root)
    if source is None or opened is None:
        vectors = open_vectors(target)
    else:
        vectors = encoded(load(target, device, dtype), opened, column, out / "vectors", ids=id)
    values: Any = keep if keep in ("first", "central") else column_of_vectors(vectors, keep, opened, ids=id)
    found = find_duplicates(
        vectors,
        out,
        match_threshold(vectors, precision) if threshold is None else threshold,
        against=open_vectors(against) if against else None,
        keep=values,
        by_index=by_index,
    )
    write_json(json, asdict(found))
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
