"""mmcl eval: the metrics of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcl.cli.compare import compare
from mmcl.cli.options import (
    AllowPipe,
    Backend,
    Classes,
    CutOffs,
    Device,
    Document,
    Dtype,
    Exact,
    ImageColumn,
    ImageRoot,
    Model,
    Query,
    SelfMatches,
    Separator,
    Source,
    Split,
    Templates,
    Tower,
    cutoffs,
    load,
    names_columns,
)
from mmcl.cli.output import JsonPath, write_json
from mmcl.cli.scores import (
    print_classes,
    print_comparison,
    print_diagnostics,
    print_metrics,
    print_scores,
    print_sts,
    print_sts_comparison,
)
from mmcl.runtime.errors import MmclError

if TYPE_CHECKING:
    from mmcl.evaluation import Scores, ZeroShotScores

app = typer.Typer(rich_markup_mode=None, help="Judge a model, or compare two.", no_args_is_help=True)

QueryPrompt = Annotated[
    str | None, typer.Option(help="The model's prompt for queries.", show_default="query, if it has one")
]
DocumentPrompt = Annotated[
    str | None, typer.Option(help="The model's prompt for documents.", show_default="document or passage, if any")
]
QueryTower = Annotated[
    str | None,
    typer.Option("--tower", help="The tower of queries, if there are several of a kind.", show_default=False),
]
DocumentTower = Annotated[str | None, typer.Option(help="The tower of documents.", show_default=False)]
Against = Annotated[str | None, typer.Option(help="Another model: is it better, by a paired test?", show_default=False)]
Pairs = Annotated[
    str | None, typer.Option(help="The two columns of sentences, as A,B.", show_default="sentence1,sentence2")
]
ScoreColumn = Annotated[str | None, typer.Option("--score", help="The column of scores.", show_default="score")]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="A task of the table; repeat it.", show_default="all")]


PerQuery = Annotated[
    bool, typer.Option("--per-query", help="Keep every query's values in the --json file, for mmcl eval compare.")
]


@app.command(short_help="Find texts by image and images by text, or texts by text.")
@names_columns
def retrieval(
    model: Model,
    source: Annotated[
        str, typer.Argument(help="Rows: a file, folder or name; or a folder in BEIR's layout.", show_default=False)
    ],
    split: Split = None,
    image: ImageColumn = "image",
    text: Annotated[str, typer.Option(help="The column of captions, one or a list a row.")] = "text",
    query: Query = None,
    document: Document = None,
    query_prompt: QueryPrompt = None,
    document_prompt: DocumentPrompt = None,
    tower: QueryTower = None,
    document_tower: DocumentTower = None,
    self_matches: SelfMatches = None,
    against: Against = None,
    k: CutOffs = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "torch",
    separator: Separator = None,
    image_root: ImageRoot = None,
    exact_decoding: Exact = True,
    allow_pipe: AllowPipe = False,
    json: JsonPath = None,
    per_query: PerQuery = False,
) -> None:
    """Find texts by image and images by text, or texts by text, exactly, with 95% intervals. A tie never helps.

    A row may have several captions: each is a query, and any of them is a right answer for the image. Equal captions
    are right for each other's images (but not in clip_benchmark's numbers). A data set with captions in Karpathy's
    JSON layout, or a CSV with a caption a row, is judged as it is: mmcl eval retrieval MODEL dataset_coco.json --split
    test.

    Texts by text: a folder in BEIR's layout (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv) by its graded judgements,
    or two columns of a table: --query question --document answer.
    """
    _check_per_query(per_query, json)
    from mmcl.evaluation import compare as compare_scores
    from mmcl.evaluation.compare import headlines_of
    from mmcl.evaluation.tasks.search import Searched, open_retrieval

    towers = {"tower": tower, "document_tower": document_tower}
    searched = Searched(
        image, text, query, document, query_prompt, document_prompt, self_matches, cutoffs(k), **towers  # type: ignore[arg-type]
    )  # fmt: skip
    evaluate = open_retrieval(source, searched, split=split, separator=separator, root=image_root)
    encoder = load(model, device, dtype, backend, exact_decoding)
    for name in filter(None, towers.values()):
        encoder.towers.resolve(name)  # a name that the model has not is a mistake; that it has no choice is none
    scores = evaluate(encoder, 1000)
    theirs = {name: value for judged in scores.values() for name, value in judged.clip_benchmark.items()}
    found = None
    if against is not None:
        other = evaluate(load(against, device, dtype, backend, exact_decoding), 0)
        found = compare_scores(scores, other, headlines_of(scores))
    tested = {} if found is None else {"against": {"a": model, "b": against, **found.to_dict()}}
    write_json(json, {**_for_json(scores, per_query), "clip_benchmark": theirs, **tested})
    print_scores(scores)
    if found is not None:
        print_comparison(found, model, str(against), of="rows" if query else "images")


@app.command(short_help="Semantic textual similarity, against people's scores.")
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

    rows = open_sts(table, split=split, tasks=task or (), columns=_pair_columns(pairs, score))
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


@app.command("zero-shot")
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

    _check_per_query(per_query, json)
    scores = zero_shot_of_rows(
        load(model, device, dtype, exact_decoding=exact_decoding, tower=tower),
        open_rows(source, split=split, separator=separator, root=image_root),
        image=image,
        label=label,
        templates=template or ("{}",),
        classes=classes,
    )
    write_json(json, _for_json({"zero_shot": scores}, per_query)["zero_shot"])
    theirs = {"top@1": "acc1", "top@5": "acc5", "mean_per_class": "mean_per_class_recall"}
    title = f"{scores.images:,} images, {scores.classes:,} classes"
    if scores.empty_classes:
        title += f", {scores.empty_classes:,} of them without an image"
    print_metrics(scores, theirs, title)
    print_classes(scores)


@app.command()
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
    uniformity of all their sentences, as in the SimCSE paper.
    """
    from mmcl.data.sources.tar.rows import open_rows
    from mmcl.evaluation import open_sts
    from mmcl.evaluation.tasks.rows import diagnostics_of_rows
    from mmcl.evaluation.tasks.sts import sts_diagnostics

    if pairs is not None:
        columns = _pair_columns(pairs, score)
        table = open_sts(source, split=split, tasks=task or (), columns=columns, scored=score is not None)
        found = sts_diagnostics(load(model, device, dtype, backend, exact_decoding, tower), table)
    else:
        rows = open_rows(source, split=split, separator=separator, root=image_root)
        encoder = load(model, device, dtype, backend, exact_decoding, tower)
        if image is None and text is None:
            image, text = (name if name in encoder.modalities else None for name in ("image", "text"))
        found = diagnostics_of_rows(encoder, rows, image=image, text=text)
    write_json(json, found.to_dict())
    print_diagnostics(found)


app.command(short_help="Is B better than A, or luckier?")(compare)


def _pair_columns(pairs: str | None, score: str | None) -> dict[str, str]:
    """Role to column, of those that are named."""
    names = pairs.split(",") if pairs else []
    if pairs and (len(names) != 2 or not all(name.strip() for name in names)):
        raise MmclError(f"--pairs {pairs}: expected two columns, like sentence1,sentence2")
    columns = dict(zip(("sentence1", "sentence2"), (name.strip() for name in names), strict=False))
    return columns | ({"score": score} if score else {})


def _check_per_query(per_query: bool, json: Path | None) -> None:
    if per_query and json is None:
        raise MmclError("--per-query needs --json FILE to write the values to")


def _for_json(scores: Mapping[str, Scores | ZeroShotScores], per_query: bool) -> dict[str, Any]:
    from mmcl.evaluation.compare import Queries

    return {
        name: {**judged.to_dict(), **({"per_query": Queries.of(judged).to_dict()} if per_query else {})}
        for name, judged in scores.items()
    }
