"""mmcl eval sts, and the options that name pairs of sentences."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mmcl.cli.evaluate.scores import print_sts, print_sts_comparison
from mmcl.cli.options import (
    Against,
    Backend,
    Device,
    Dtype,
    Model,
    Tower,
    load,
    names_columns,
)
from mmcl.cli.output import JsonPath, write_json
from mmcl.runtime.errors import MmclError

Pairs = Annotated[
    str | None, typer.Option(help="The two columns of sentences, as A,B.", show_default="sentence1,sentence2")
]
ScoreColumn = Annotated[str | None, typer.Option("--score", help="The column of scores.", show_default="score")]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="A task of the table; repeat it.", show_default="all")]


@names_columns
def sts(
    model: Model,
    table: Annotated[
        str | None,
        typer.Argument(help="Pairs with scores: a file, folder or name.", show_default="the seven tasks from the hub"),
    ] = None,
    split: Annotated[str, typer.Option(help="The part of the table to read.")] = "test",
    task: Tasks = None,
    pairs: Pairs = None,
    score: ScoreColumn = None,
    against: Against = None,
    prompt: Annotated[str | None, typer.Option(help="The model's prompt for sentences.", show_default="none")] = None,
    tower: Tower = None,
    similarity: Annotated[str, typer.Option(help="cosine, dot, euclidean, manhattan.")] = "cosine",
    resamples: Annotated[int, typer.Option(help="Of the intervals and of the test.", min=1)] = 2000,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "torch",
    json: JsonPath = None,
) -> None:
    """Semantic textual similarity: the seven-task table of the SimCSE paper, with 95% intervals.

    Spearman's correlation over all subsets of a task together, and the average over the tasks; printed × 100, fractions
    in --json. A table has the columns sentence1, sentence2 and score, and task and split where it holds several.
    """
    from mmcl.evaluation import compare_sts, open_sts
    from mmcl.evaluation import sts as judge
    from mmcl.evaluation.tasks.search import by_tower

    rows = open_sts(table, split=split, tasks=task or (), columns=pair_columns(pairs, score))
    options: dict[str, Any] = {"similarity": similarity, "prompt": prompt}
    scores = judge(load(model, device, dtype, backend, tower=tower), rows, bootstrap=resamples, **options)
    found = None
    if against is not None:
        other = judge(by_tower(load(against, device, dtype, backend), tower), rows, bootstrap=0, **options)
        found = compare_sts(scores, other, resamples=resamples)
    tested = {} if found is None else {"against": {"a": model, "b": against, **found.to_dict()}}
    write_json(json, {**scores.to_dict(), **tested})
    print_sts(scores)
    if found is not None:
        print_sts_comparison(found, model, str(against))


def pair_columns(pairs: str | None, score: str | None) -> dict[str, str]:
    """Role to column, of those that are named."""
    names = pairs.split(",") if pairs else []
    if pairs and (len(names) != 2 or not all(name.strip() for name in names)):
        raise MmclError(f"--pairs {pairs}: expected two columns, like sentence1,sentence2")
    columns = dict(zip(("sentence1", "sentence2"), (name.strip() for name in names), strict=False))
    return columns | ({"score": score} if score else {})
