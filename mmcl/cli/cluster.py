"""mmcl cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mmcl.cli.dedup import Column, IdColumn, Rows, Target, ToEncode, vectors_of
from mmcl.cli.options import Device, Dtype, ImageRoot, Separator, Split, names_columns
from mmcl.cli.output import JsonPath, print_table, say, write_json
from mmcl.runtime.errors import MmclError

Folder = Annotated[Path, typer.Option(help="The folder to write.", show_default=False)]
ClusterCount = Annotated[int | None, typer.Option("-k", min=1, help="K-means: so many clusters.", show_default=False)]
CommunityThreshold = Annotated[
    float | None,
    typer.Option(help="Communities: rows at least this similar to one at the centre.", show_default=False),
]
Smallest = Annotated[int, typer.Option(min=1, help="Rows of a community.")]
Similarity = Annotated[Literal["cosine", "euclidean"], typer.Option(help="Of k-means.")]
Seed = Annotated[int, typer.Option(help="Of k-means and of the map.")]
Central = Annotated[int, typer.Option(min=1, help="Rows to show of each cluster, from the centre on.")]
MapFile = Annotated[
    Path | None, typer.Option(help="Also draw all rows as points: a .png or .html file.", show_default=False)
]
MapMethod = Annotated[
    Literal["umap", "pca"] | None, typer.Option(help="How to draw it.", show_default="umap if it is installed")
]
ColourColumn = Annotated[
    str | None,
    typer.Option("--color", "--colour", help="The column that colours the map.", show_default="the cluster"),
]


@names_columns
def cluster(
    target: Target,
    out: Folder,
    source: ToEncode = None,
    k: ClusterCount = None,
    threshold: CommunityThreshold = None,
    smallest: Smallest = 10,
    similarity: Similarity = "cosine",
    seed: Seed = 0,
    central: Central = 3,
    map: MapFile = None,
    map_method: MapMethod = None,
    colour: ColourColumn = None,
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
    from mmcl.data.sources.tar.rows import open_rows
    from mmcl.reports.map import check_map, write_map
    from mmcl.retrieval.similar.clusters import communities, kmeans, write_clusters
    from mmcl.retrieval.similar.corpus import column_of_vectors
    from mmcl.retrieval.similar.pairs import UnitVectors

    if (k is None) == (threshold is None):
        raise MmclError("name the number of clusters with -k, or the cosine of a community with --threshold")
    table = None if (of := source or rows) is None else open_rows(of, split=split, separator=separator, root=image_root)
    vectors = vectors_of(target, table if source else None, column, out, id, device, dtype)
    values: Any = None
    if map is not None:  # before the work
        check_map(map, len(vectors))
        values = None if colour is None else column_of_vectors(vectors, colour, table, ids=id)
    unit = UnitVectors(vectors)
    if k is not None:
        found = kmeans(unit, k, similarity=similarity, seed=seed)
    else:
        found = communities(unit, threshold or 0.0, smallest=smallest)
    written = write_clusters(found, vectors, out, central)
    write_json(json, written)
    _show(written, central)
    say(out / "clusters.parquet")
    if map is not None:
        values = found.of_rows if values is None else values
        say(write_map(vectors, map, values, title=colour or "cluster", method=map_method, seed=seed))


def _show(written: dict[str, Any], central: int) -> None:
    columns = ["cluster", "rows", *(f"central {number + 1}" for number in range(central))]
    lines = [[each["cluster"], each["size"], *each["central"]] for each in written["clusters"]]
    print_table(columns, [[*line, *[""] * (len(columns) - len(line))] for line in lines])
    if written["none"]:
        say(f"{written['none']:,} of {written['rows']:,} rows are in no cluster")
