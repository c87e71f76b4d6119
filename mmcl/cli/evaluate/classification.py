"""mmcl eval zero-shot, knn, linear-probe and few-shot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from mmcl.cli.evaluate.per_query import PerQuery, check_per_query, for_json
from mmcl.cli.evaluate.scores import print_classes, print_few_shot, print_knn, print_metrics, print_not_offered
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
from mmcl.runtime.errors import MmclError

if TYPE_CHECKING:
    from mmcl.data.rows import Rows
    from mmcl.data.sources.tar.rows import ShardRows
    from mmcl.evaluation import FewShotScores

Train = Annotated[str, typer.Option(help="Rows to learn from: a file, folder or name.", show_default=False)]
Test = Annotated[str, typer.Option(help="Rows to judge on.", show_default=False)]
TrainSplit = Annotated[str | None, typer.Option(help="The part of --train to read.", show_default=False)]
TestSplit = Annotated[str | None, typer.Option(help="The part of --test to read.", show_default=False)]
Label = Annotated[str, typer.Option(help="The column of class names or numbers.")]


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


@names_columns
def knn(
    model: Model,
    train: Train,
    test: Test,
    train_split: TrainSplit = None,
    test_split: TestSplit = None,
    image: ImageColumn = "image",
    label: Label = "label",
    k: Annotated[str, typer.Option("--k", "-k", help="Neighbours that vote; several, like 20,200.")] = "200",
    temperature: Annotated[
        str, typer.Option(help="τ of a neighbour's weight exp(cosine / τ); several, like 0.07,0.1.")
    ] = "0.1",
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
    """Classify images by the votes of the nearest training images, with 95% intervals. Nothing is fitted.

    Exactly as the tables of self-supervised learning do (Wu et al. 2018): k=200 and τ=0.1, or --k 20 --temperature
    0.07. Two models are compared by their files: --json FILE --per-query of each, and mmcl eval compare.
    """
    from mmcl.evaluation.tasks.classification.of_rows import knn_of_rows

    check_per_query(per_query, json)
    ks, temperatures = _numbers("--k", k, int), _numbers("--temperature", temperature, float)
    rows = _open(train, train_split, separator, image_root), _open(test, test_split, separator, image_root)
    encoder = load(model, device, dtype, exact_decoding=exact_decoding, tower=tower)
    found = knn_of_rows(encoder, *rows, image=image, label=label, ks=ks, temperatures=temperatures)
    named = {f"k={scores.k} temperature={scores.temperature:g}": scores for scores in found}
    write_json(json, for_json(named, per_query))
    print_knn(found)


@names_columns
def linear_probe(
    model: Model,
    train: Train,
    test: Test,
    train_split: TrainSplit = None,
    test_split: TestSplit = None,
    image: ImageColumn = "image",
    label: Label = "label",
    l2: Annotated[
        float | None,
        typer.Option(help="Weight of the penalty, 1/(C·N) of scikit-learn.", show_default="by validation rows"),
    ] = None,
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
    """Classify images by logistic regression on the model's features, with 95% intervals.

    Full-batch L-BFGS, with the L2 penalty under which a tenth of the training rows (of each class) is most likely; then
    fitted on all of them. The rows of --test choose nothing. Features are standardised, not brought to unit length.
    """
    from mmcl.evaluation.tasks.classification.of_rows import linear_probe_of_rows

    check_per_query(per_query, json)
    rows = _open(train, train_split, separator, image_root), _open(test, test_split, separator, image_root)
    encoder = load(model, device, dtype, exact_decoding=exact_decoding, tower=tower)
    found = linear_probe_of_rows(encoder, *rows, image=image, label=label, l2=l2)
    write_json(json, for_json({"linear_probe": found}, per_query))
    how = "chosen on training rows" if found.validation else "fixed"
    print_metrics(found, {}, f"linear probe: {found.size}, {found.train:,} training images, l2 {found.l2:.3g} ({how})")
    print_not_offered(found)


@names_columns
def few_shot(
    model: Model,
    train: Train,
    test: Test,
    train_split: TrainSplit = None,
    test_split: TestSplit = None,
    image: ImageColumn = "image",
    label: Label = "label",
    fraction: Annotated[str, typer.Option(help="Shares of the labels, between commas.")] = "0.01,0.1",
    seeds: Annotated[int, typer.Option(help="Draws of each share.", min=1)] = 5,
    fine_tune: Annotated[bool, typer.Option("--fine-tune", help="Train the whole tower on them, not a probe.")] = False,
    tower: Tower = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    separator: Separator = None,
    image_root: ImageRoot = None,
    exact_decoding: Exact = True,
    allow_pipe: AllowPipe = False,
    json: JsonPath = None,
) -> None:
    """Classify images by a linear probe that sees 1% and 10% of the labels of --train.

    A share is drawn class by class, at least one image of each, several times: the mean over the draws, their standard
    deviation, and the 95% interval of the mean over the test images.

    --fine-tune starts from the model and the probe, and trains the whole tower as SimCLR's tables do: SGD, random crops
    and flips, 60 epochs on 1% and 30 on 10%.
    """
    from mmcl.evaluation.tasks.classification.fine_tune import fine_tuning_of_rows
    from mmcl.evaluation.tasks.classification.of_rows import few_shot_of_rows

    fractions = _numbers("--fraction", fraction, float)
    rows = _open(train, train_split, separator, image_root), _open(test, test_split, separator, image_root)
    encoder = load(model, device, dtype, exact_decoding=exact_decoding, tower=tower)
    judge: Callable[..., list[FewShotScores]] = fine_tuning_of_rows if fine_tune else few_shot_of_rows
    found = judge(encoder, *rows, image=image, label=label, fractions=fractions, seeds=seeds)
    write_json(json, {f"{100 * scores.fraction:g}%": scores.to_dict() for scores in found})
    print_few_shot(found, "fine-tuning" if fine_tune else "linear probe")


N = TypeVar("N", int, float)


def _numbers(option: str, given: str, of: Callable[[str], N]) -> list[N]:
    """The numbers of an option, between commas."""
    try:
        return [of(part) for part in given.split(",")]
    except ValueError:
        raise MmclError(f"{option} {given}: expected a number, or several between commas") from None


def _open(source: str, split: str | None, separator: str | None, root: Path | None) -> Rows | ShardRows:
    from mmcl.data.sources.tar.rows import open_rows

    return open_rows(source, split=split, separator=separator, root=root)
