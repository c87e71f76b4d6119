"""mmcl cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mmcl.cli.dedup import Column, IdColumn, Rows, Target, ToEncode
from mmcl.cli.options import Device, Dtype, ImageRoot, Separator, Split, names_columns
from mmcl.cli.output import JsonPath, print_table, say, write_json
from mmcl.runtime.errors import MmclError


@names_columns
def cluster(
    target: Target,
    out: Annotated[Path, typer.Option(help="The folder to write.", show_default=False)],
    source: ToEncode = None,
    k: Annotated[int | None, typer.Option("-k", min=1, help="K-means: so many clusters.", show_default=False)] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Communities: rows at least this similar to one at the centre.", show_default=False),
    ] = None,
    smallest: Annotated[int, typer.Option(min=1, help="Rows of a community.")] = 10,
    similarity: Annotated[Literal["cosine", "euclidean"], typer.Option(help="Of k-means.")] = "cosine",
    seed: Annotated[int, typer.Option(help="Of k-means and of the map.")] = 0,
    central: Annotated[int, typer.Option(min=1, help="Rows to show of each cluster, from the centre on.")] = 3,
    map: Annotated[
        Path | None, typer.Option(help="Also draw all rows as points: a .png or .html file.", show_default=False)
    ] = None,
    map_method: Annotated[
        Literal["umap", "pca"] | None, typer.Option(help="How to draw it.", show_default="umap if it is installed")
    ] = None,
    colour: Annotated[
        str | None,
        typer.Option("--color", "--colour", help="The column that colours the map.", show_default="the cluster"),
    ] = None,
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
    """Group rows by their vectors, show the most central ones of each group, and draw a map."""
    from mmcl.cli.options import load
    from mmcl.data.sources.tar.rows import open_rows
    from mmcl.encoding import open_vectors
    from mmcl.retrieval.similar.clusters import communities, kmeans, write_clusters
    from mmcl.retrieval.similar.corpus import column_of_vectors, encoded
    from mmcl.retrieval.similar.pairs import UnitVectors

    if (k is None) == (threshold is None):
        raise MmclError("name the number of clusters with -k, or the cosine of a community with --threshold")
    if map is not None:
        from mmcl.reports.map import check_map, write_map

        check_map(map)
    of = source or rows
    opened = None if of is None else open_rows(of, split=split, separator=separator, root=image_root)
    if source is None or opened is None:
        vectors = open_vectors(target)
    else:
        vectors = encoded(load(target, device, dtype), opened, column, out / "vectors", ids=id)
    unit = UnitVectors(vectors)
    if k is not None:
        found = kmeans(unit, k, similarity=similarity, seed=seed)
    else:
        found = communities(unit, threshold or 0.0, smallest=smallest)
    written = write_clusters(found, vectors, out, central)
    write_json(json, written)
    columns = ["cluster", "rows", *(f"central {number + 1}" for number in range(central))]
    lines = [[each["cluster"], each["size"], *each["central"]] for each in written["clusters"]]
    print_table(columns, [[*line, *[""] * (len(columns) - len(line))] for line in lines])
    if written["none"]:
        say(f"{written['none']:,} of {written['rows']:,} rows are in no cluster")
    say(out / "clusters.parquet")
    if map is not None:
        values = found.of_rows if colour is None else column_of_vectors(vectors, colour, opened, ids=id)
        write_map(vectors, map, values, title=colour or "cluster", method=map_method, seed=seed)
        say(map)
