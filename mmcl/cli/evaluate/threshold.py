"""mmcl eval threshold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmcl.cli.evaluate.sts import Pairs, ScoreColumn, Tasks, pair_columns
from mmcl.cli.options import (
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
from mmcl.cli.output import JsonPath, print_table, say, write_json

if TYPE_CHECKING:
    from mmcl.evaluation import Thresholds
    from mmcl.evaluation.tasks.threshold.threshold import Cut

Modality = Literal["text", "image", "image-text"]


SameFrom = Annotated[
    float | None, typer.Option(help="The score from which a pair is the same.", show_default="1, of scores 0 and 1")
]
GroupColumn = Annotated[
    str | None,
    typer.Option(
        help="Without labelled pairs: the column that is equal for rows that are the same, or hash.",
        show_default=False,
    ),
]
ComparedColumn = Annotated[
    str | None, typer.Option(help="Of what --duplicates compares.", show_default="image or text")
]
Compared = Annotated[Modality, typer.Option(help="What is compared.")]
Precision = Annotated[
    list[float] | None, typer.Option(help="That is asked for; repeat it.", show_default="0.9, 0.95 and 0.99")
]
Confidence = Annotated[float, typer.Option(help="Of the choice and of the intervals.")]
Prevalence = Annotated[
    float | None,
    typer.Option(help="The share of the same among the pairs to come.", show_default="as in these rows"),
]
AtLeast = Annotated[
    bool, typer.Option("--at-least", help="Choose so that it is at least so precise, with the confidence.")
]
Negatives = Annotated[int, typer.Option(help="Random pairs for --duplicates; a low prevalence takes many.", min=100)]
TextPrompt = Annotated[str | None, typer.Option(help="The model's prompt for texts.", show_default="none")]
KeepIt = Annotated[bool, typer.Option("--keep/--no-keep", help="Write it into the model folder.")]


@names_columns
def threshold(
    model: Model,
    source: Source,
    split: Split = None,
    task: Tasks = None,
    pairs: Pairs = None,
    score: ScoreColumn = None,
    same_from: SameFrom = None,
    duplicates: GroupColumn = None,
    column: ComparedColumn = None,
    modality: Compared = "text",
    precision: Precision = None,
    confidence: Confidence = 0.95,
    prevalence: Prevalence = None,
    at_least: AtLeast = False,
    negatives: Negatives = 1_000_000,
    prompt: TextPrompt = None,
    keep: KeepIt = True,
    tower: Tower = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "torch",
    separator: Separator = None,
    image_root: ImageRoot = None,
    exact_decoding: Exact = True,
    json: JsonPath = None,
) -> None:
    """From which cosine on do two things match, at a stated precision: for search --match and dedup.

    Half of the pairs choose each threshold, the other half says how precise it is, with an exact interval; where the
    data do not support a number, the reason stands in its place. A precision holds for a share of the same among the
    pairs: --prevalence is that to come. With --duplicates, pairs are drawn from groups of duplicates and at random.
    """
    from mmcl.data.sources import open_source
    from mmcl.evaluation import open_sts, threshold_of_pairs
    from mmcl.evaluation.tasks.threshold.duplicates import threshold_of_items
    from mmcl.evaluation.tasks.threshold.kept import keep as keep_in_folder
    from mmcl.evaluation.tasks.threshold.pairs import threshold_of_columns

    options: dict[str, Any] = {"confidence": confidence, "prevalence": prevalence, "at_least": at_least}
    options |= {"prompt": prompt} | ({"precision": precision} if precision else {})
    sides = ("image", "text") if modality == "image-text" else (modality, modality)
    encoder = load(model, device, dtype, backend, exact_decoding, tower)
    if duplicates is None and modality == "text":
        table = open_sts(source, split=split, tasks=task or (), columns=pair_columns(pairs, score))
        found = threshold_of_pairs(encoder, table, same_from=same_from, **options)
    else:
        rows = open_source(source, split=split, separator=separator, root=image_root)
        if duplicates is None:
            names = pair_columns(pairs or "image1,image2", None)
            columns = (names["sentence1"], names["sentence2"])
            options |= {"score": score or "score", "same_from": same_from}
            found = threshold_of_columns(encoder, rows, columns, sides, **options)
        else:
            options |= {"groups": None if duplicates == "hash" else duplicates, "negatives": negatives}
            found = threshold_of_items(encoder, rows, column or sides[0], sides[0], **options)
    write_json(json, found.to_dict())
    _print(found)
    if keep:
        _say_where(keep_in_folder(encoder, found, sides, data=source, prompt=prompt), model)


def _print(found: Thresholds) -> None:
    rows = [_row(cut) for cut in found.cuts if cut.threshold is not None]
    level = f"{100 * found.confidence:g}%"
    columns = ["asked", "match from", "precision", f"{level} interval", "recall", f"{level} interval", "F1"]
    title = f"{found.pairs:,} pairs, {found.same:,} of them the same"
    if rows:
        print_table(columns, rows, title=title)
    else:
        say(title)
    for cut in found.cuts:
        if cut.threshold is None:
            say(f"{_asked(cut)}: no threshold, since {cut.reason}")
    if (fitted := found.calibration) is not None:
        low, high = found.area_interval
        say(
            f"area under the ROC curve {found.area:.3f} ({low:.3f} – {high:.3f})",
            f"probabilities by {fitted.kind} regression, calibration error {fitted.error:.3f} on pairs left out",
            f"all of it where {found.prevalence:.2%} of the pairs are the same; --prevalence is for another share",
        )


def _row(cut: Cut) -> list[object]:
    assert cut.shares is not None
    assert cut.intervals is not None
    shown: list[object] = [_asked(cut), f"{cut.threshold:.6g}"]
    for name in ("precision", "recall"):
        low, high = cut.intervals[name]
        shown += [f"{cut.shares[name]:.3f}", f"{low:.3f} – {high:.3f}"]
    return [*shown, f"{cut.shares['f1']:.3f}"]


def _asked(cut: Cut) -> str:
    return "best F1" if cut.asked is None else f"precision {cut.asked:g}"


def _say_where(path: Path | None, model: str) -> None:
    kept = (
        f"kept in {path}"
        if path
        else f"not kept: {model} is no folder that mmcl wrote; mmcl.load(…).save(FOLDER) makes one"
    )
    say(kept)
