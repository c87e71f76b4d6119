"""mmcl eval diagnostics."""

from __future__ import annotations

from typing import Annotated

import typer

from mmcl.cli.evaluate.scores import print_diagnostics
from mmcl.cli.evaluate.sts import ScoreColumn, Tasks, pair_columns
from mmcl.cli.options import (
    AllowPipe,
    Backend,
    Device,
    Dtype,
    Exact,
    ImageRoot,
    Model,
    Separator,
    Source,
    Split,
    Tower,
    load,
    names_columns,
)
from mmcl.cli.output import JsonPath, write_json


@names_columns
def diagnostics(
    model: Model,
    source: Source,
    split: Split = None,
    image: Annotated[
        str | None, typer.Option(help="The column of images.", show_default="image, unless --text is alone")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="The column of texts.", show_default="text, unless --image is alone")
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(help="Two columns of text, as sentence1,sentence2.", show_default=False)
    ] = None,
    score: ScoreColumn = None,
    task: Tasks = None,
    views: Annotated[
        int,
        typer.Option(help="Random changes of each of 1,000 images, for LiDAR; the paper takes 50.", min=0),
    ] = 0,
    tower: Tower = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "torch",
    separator: Separator = None,
    image_root: ImageRoot = None,
    exact_decoding: Exact = True,
    allow_pipe: AllowPipe = False,
    json: JsonPath = None,
) -> None:
    """Is the space used, do the modalities meet, has it collapsed. Name one column to look at one modality alone.

    --pairs sentence1,sentence2: alignment of the pairs scored above 4 of 5 (of all, in a table without scores) and
    uniformity of all their sentences, as in the SimCSE paper. Of images alone: RankMe, and LiDAR with --views.
    """
    from mmcl.data.sources.tar.rows import open_rows
    from mmcl.evaluation import open_sts
    from mmcl.evaluation.tasks.rows import diagnostics_of_rows
    from mmcl.evaluation.tasks.sts import sts_diagnostics

    if pairs is not None:
        columns = pair_columns(pairs, score)
        table = open_sts(source, split=split, tasks=task or (), columns=columns, scored=score is not None)
        found = sts_diagnostics(load(model, device, dtype, backend, exact_decoding, tower), table)
    else:
        rows = open_rows(source, split=split, separator=separator, root=image_root)
        encoder = load(model, device, dtype, backend, exact_decoding, tower)
        if image is None and text is None:
            image, text = (name if name in encoder.modalities else None for name in ("image", "text"))
        found = diagnostics_of_rows(encoder, rows, image=image, text=text, views=views)
    write_json(json, found.to_dict())
    print_diagnostics(found)
