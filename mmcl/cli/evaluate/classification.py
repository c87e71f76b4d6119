"""mmcl eval zero-shot, knn, linear-probe and few-shot."""

from __future__ import annotations

from typing import Annotated

import typer

from mmcl.cli.evaluate.per_query import PerQuery, check_per_query, for_json
from mmcl.cli.evaluate.scores import print_classes, print_metrics
from mmcl.cli.options import (
    AllowPipe,
    Classes,
    Device,
    Dtype,
    Exact,
    ImageColumn,
    ImageRoot,
    Model,
    Separator,
    Source,
    Split,
    Templates,
    Tower,
    load,
    names_columns,
)
from mmcl.cli.output import JsonPath, write_json


@names_columns
def zero_shot(
    model: Model,
    source: Source,
    label: Annotated[str, typer.Option(help="The column of class names or numbers.", show_default=False)],
    split: Split = None,
    image: ImageColumn = "image",
    template: Templates = None,
    classes: Classes = None,
    tower: Tower = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    separator: Separator = None,
    image_root: ImageRoot = None,
    exact_decoding: Exact = True,
    allow_pipe: AllowPipe = False,
    json: JsonPath = None,
    per_query: PerQuery = False,
) -> None:
    """Classify images by the names of the classes alone.

    ImageNet as the CLIP paper does it: --classes imagenet --template openai.
    """
    from mmcl.data.sources.tar.rows import open_rows
    from mmcl.evaluation.tasks.rows import zero_shot_of_rows

    check_per_query(per_query, json)
    scores = zero_shot_of_rows(
        load(model, device, dtype, exact_decoding=exact_decoding, tower=tower),
        open_rows(source, split=split, separator=separator, root=image_root),
        image=image,
        label=label,
        templates=template or ("{}",),
        classes=classes,
    )
    write_json(json, for_json({"zero_shot": scores}, per_query)["zero_shot"])
    theirs = {"top@1": "acc1", "top@5": "acc5", "mean_per_class": "mean_per_class_recall"}
    title = f"{scores.images:,} images, {scores.classes:,} classes"
    if scores.empty_classes:
        title += f", {scores.empty_classes:,} of them without an image"
    print_metrics(scores, theirs, title)
    print_classes(scores)
