"""mmcl eval recommendation."""

from __future__ import annotations

from typing import Annotated

import typer

from mmcl.cli.evaluate.per_query import PerQuery, check_per_query, for_json
from mmcl.cli.evaluate.scores import print_scores
from mmcl.cli.options import Device, Dtype, Model, Separator, Split, cutoffs, load
from mmcl.cli.output import JsonPath, write_json


def recommendation(
    model: Model,
    source: Annotated[
        str, typer.Argument(help="Rows of what users chose, to be found: a file, folder or name.", show_default=False)
    ],
    split: Split = None,
    seen: Annotated[
        str | None,
        typer.Option(help="Rows of what they had chosen before, which is not ranked.", show_default="the same source"),
    ] = None,
    seen_split: Annotated[str | None, typer.Option(help="The part of --seen to read.")] = None,
    user: Annotated[str, typer.Option(help="The column of the ids of users.")] = "user_id",
    item: Annotated[str, typer.Option(help="The column of the ids of items.")] = "item_id",
    k: Annotated[str | None, typer.Option("-k", help="Cut-offs.", show_default="10,20")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    separator: Separator = None,
    json: JsonPath = None,
    per_query: PerQuery = False,
) -> None:
    """Rank for each user all items that are not in --seen, and score those that the user chose, with 95% intervals.

    Both tables have the columns that the model's towers read. A user's are read from its first row in SOURCE, an item's
    from its first row in --seen or, where it is not, in SOURCE. Example: mmcl eval recommendation
    runs/two_tower_movielens sample:movielens --split test --seen-split train
    """
    check_per_query(per_query, json)
    from mmcl.data.rows import columns_named_by
    from mmcl.data.sources import open_source
    from mmcl.evaluation.tasks.recommendation import WAY, recommendation_of_rows

    encoder = load(model, device, dtype)
    rows = open_source(source, split=split, separator=separator)
    before = open_source(seen or source, split=seen_split, separator=separator)
    with columns_named_by({"--user": user, "--item": item}):
        found = recommendation_of_rows(encoder, rows, [before], user=user, item=item, ks=cutoffs(k) or (10, 20))
    scores = {WAY: found}
    write_json(json, for_json(scores, per_query))
    print_scores(scores)
