"""mmcl eval: judge a model, or compare two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcl.cli.columns import names_columns
from mmcl.cli.models import AllowPipe, Backend, Device, Dtype, Model, load
from mmcl.cli.output import JsonPath, write_json
from mmcl.cli.scores import (
    print_classes,
    print_comparison,
    print_diagnostics,
    print_metrics,
    print_scores,
    print_sts,
    print_sts_comparison,
    print_what_counts,
)
from mmcl.cli.sources import ImageRoot, Separator
from mmcl.runtime.errors import MmclError

if TYPE_CHECKING:
    from mmcl.encoding.encoder import Encoder
    from mmcl.evaluation import Scores, ZeroShotScores

app = typer.Typer(rich_markup_mode=None, help="Judge a model, or compare two.", no_args_is_help=True)

Source = Annotated[str, typer.Argument(help="Rows: a file, folder or name.", show_default=False)]
Split = Annotated[str | None, typer.Option(help="The part of the source to read.")]
ImageColumn = Annotated[str, typer.Option(help="The column of pictures.")]
Query = Annotated[
    str | None, typer.Option(help="The column of texts to search with, for --document.", show_default=False)
]
Document = Annotated[
    str | None, typer.Option(help="The column of texts to find, one or a list a row.", show_default=False)
]
QueryPrompt = Annotated[
    str | None, typer.Option(help="The model's prompt for queries.", show_default="query, if it has one")
]
DocumentPrompt = Annotated[
    str | None, typer.Option(help="The model's prompt for documents.", show_default="document or passage, if any")
]
SelfMatches = Annotated[
    str | None,
    typer.Option(
        help="Queries that stand in the corpus themselves, by their id in a BEIR folder, by their words in a table: "
        "keep ranks such a document like any other, drop leaves it out for its own query, as BEIR and MTEB do.",
        show_default="drop for a BEIR folder, else keep",
    ),
]
Against = Annotated[str | None, typer.Option(help="Another model: is it better, by a paired test?", show_default=False)]
Pairs = Annotated[
    str | None, typer.Option(help="The two columns of sentences, as A,B.", show_default="sentence1,sentence2")
]
ScoreColumn = Annotated[str | None, typer.Option("--score", help="The column of scores.", show_default="score")]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="A task of the table; repeat it.", show_default="all")]
Templates = Annotated[
    list[str] | None,
    typer.Option(
        help="A prompt with {} for the class name, a file with one a line, or a set: openai (80), simple (7), photo, "
        "pictures, plain. Repeat it to average over several.",
        show_default="{}",
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        help="imagenet (its 1,000 names) or a file with one name a line; labels are then names, or numbers counted "
        "from 0.",
        show_default="the distinct labels",
    ),
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact-decoding/--fast-decoding",
        help="Decode large JPEGs at full size, as other libraries do; fast: as mmcl encode does by default.",
    ),
]
CutOffs = Annotated[str, typer.Option("-k", help="Cut-offs.")]
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
    self_matches: SelfMatches = None,
    against: Against = None,
    k: Annotated[str | None, typer.Option("-k", help="Cut-offs.", show_default="1,5,10; BEIR: 1,10,100")] = None,
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
    """Find texts by picture and pictures by text, or texts by text, exactly, with 95% intervals. A tie never helps.

    A row may have several captions: each is a query, and any of them is a right answer for the picture. Equal captions
    are right for each other's pictures (but not in clip_benchmark's numbers). A data set with captions in Karpathy's
    JSON layout, or a CSV with a caption a row, is judged as it is: mmcl eval retrieval MODEL dataset_coco.json --split
    test.

    Texts by text: a folder in BEIR's layout (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv) by its graded judgements,
    or two columns of a table: --query question --document answer.
    """
    _check_per_query(per_query, json)
    options = {"query_prompt": query_prompt, "document_prompt": document_prompt, **_self_matches(self_matches)}
    table = {"separator": separator, "root": image_root}
    search = _search(source, split, table, (image, text), (query, document), options, _cutoffs(k) if k else None)
    scores = search(load(model, device, dtype, backend, exact_decoding), 1000)
    theirs = {name: value for judged in scores.values() for name, value in judged.clip_benchmark.items()}
    found = None
    if against is not None:
        from mmcl.evaluation import compare as compare_scores

        found = compare_scores(
            scores, search(load(against, device, dtype, backend, exact_decoding), 0), _headlines(scores)
        )
    tested = {} if found is None else {"against": {"a": model, "b": against, **found.to_dict()}}
    write_json(json, {**_for_json(scores, per_query), "clip_benchmark": theirs, **tested})
    print_scores(scores)
    if found is not None:
        print_comparison(found, model, str(against), of="rows" if query else "pictures")


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

    rows = open_sts(table, split=split, tasks=task or (), columns=_pair_columns(pairs, score))
    options: dict[str, Any] = {"similarity": similarity, "prompt": prompt}
    scores = judge(load(model, device, dtype, backend), rows, bootstrap=resamples, **options)
    found = None
    if against is not None:
        other = judge(load(against, device, dtype, backend), rows, bootstrap=0, **options)
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
    device: Device = "auto",
    dtype: Dtype = "auto",
    separator: Separator = None,
    image_root: ImageRoot = None,
    exact_decoding: Exact = True,
    allow_pipe: AllowPipe = False,
    json: JsonPath = None,
    per_query: PerQuery = False,
) -> None:
    """Classify pictures by the names of the classes alone.

    ImageNet as the CLIP paper does it: --classes imagenet --template openai.
    """
    from mmcl.data.sources.tar.rows import open_rows
    from mmcl.evaluation.tasks.rows import zero_shot_of_rows

    _check_per_query(per_query, json)
    scores = zero_shot_of_rows(
        load(model, device, dtype, exact_decoding=exact_decoding),
        open_rows(source, split=split, separator=separator, root=image_root),
        image=image,
        label=label,
        templates=template or ("{}",),
        classes=classes,
    )
    write_json(json, _for_json({"zero_shot": scores}, per_query)["zero_shot"])
    theirs = {"top@1": "acc1", "top@5": "acc5", "mean_per_class": "mean_per_class_recall"}
    title = f"{scores.images:,} pictures, {scores.classes:,} classes"
    if scores.empty_classes:
        title += f", {scores.empty_classes:,} of them without a picture"
    print_metrics(scores, theirs, title)
    print_classes(scores)


@app.command()
@names_columns
def diagnostics(
    model: Model,
    source: Source,
    split: Split = None,
    image: Annotated[
        str | None, typer.Option(help="The column of pictures.", show_default="image, unless --text is alone")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="The column of texts.", show_default="text, unless --image is alone")
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(help="Two columns of text, as sentence1,sentence2.", show_default=False)
    ] = None,
    score: ScoreColumn = None,
    task: Tasks = None,
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
        found = sts_diagnostics(load(model, device, dtype, backend, exact_decoding), table)
    else:
        rows = open_rows(source, split=split, separator=separator, root=image_root)
        encoder = load(model, device, dtype, backend, exact_decoding)
        if image is None and text is None:
            image, text = (name if name in encoder.modalities else None for name in ("image", "text"))
        found = diagnostics_of_rows(encoder, rows, image=image, text=text)
    write_json(json, found.to_dict())
    print_diagnostics(found)


@app.command(short_help="Is B better than A, or luckier?")
@names_columns
def compare(
    a: Annotated[str, typer.Argument(help="A model, or a file of --json --per-query.", show_default=False)],
    b: Annotated[str, typer.Argument(help="The same of the other model.", show_default=False)],
    source: Annotated[
        str | None, typer.Argument(help="Rows to judge both models on; none for two files.", show_default=False)
    ] = None,
    split: Split = None,
    image: ImageColumn = "image",
    text: Annotated[
        str | None,
        typer.Option(help="The column of captions: compare retrieval.", show_default="text, unless --label is alone"),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(help="The column of classes: compare zero-shot classification.", show_default=False),
    ] = None,
    query: Query = None,
    document: Document = None,
    self_matches: SelfMatches = None,
    template: Templates = None,
    classes: Classes = None,
    k: Annotated[str | None, typer.Option("-k", help="Cut-offs.", show_default="1,5,10; BEIR: 1,10,100")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="A metric to compare, such as ndcg@10; repeat it.", show_default="hit@k, mrr, top@k, ..."),
    ] = None,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap and of the test.", min=1)] = 10_000,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "torch",
    separator: Separator = None,
    image_root: ImageRoot = None,
    exact_decoding: Exact = True,
    allow_pipe: AllowPipe = False,
    json: JsonPath = None,
) -> None:
    """Is B better than A, or luckier: differences with 95% intervals and a paired test, over the same queries.

    An interval is a paired bootstrap; p is a paired randomisation test, Holm's adjustment of it is for the number of
    metrics. The captions of one picture are resampled together. Of two models of text: a folder in BEIR's layout, or
    --query and --document; on pairs of sentences with scores: mmcl eval sts A TABLE --against B.
    """
    from mmcl.evaluation import compare as compare_scores
    from mmcl.evaluation.compare import read_per_query

    if self_matches is not None and (source is None or label is not None):
        raise MmclError("--self-matches is of searches for texts by texts, which this does not measure; leave it out")
    if source is None:
        if not (a.endswith(".json") and b.endswith(".json")):
            raise MmclError(f"compare {a} {b}: name a source to judge both models on, or give two .json files")
        sides: list[Mapping[str, Any]] = [read_per_query(a), read_per_query(b)]
    elif label is None:
        options = _self_matches(self_matches)
        table = {"separator": separator, "root": image_root}
        columns = (image, text or "text"), (query, document)
        search = _search(source, split, table, *columns, options, _cutoffs(k) if k else None)
        sides = [search(load(model, device, dtype, backend, exact_decoding), 0) for model in (a, b)]
    else:
        from mmcl.data.sources.tar.rows import open_rows
        from mmcl.evaluation.tasks.rows import scores_of_rows

        rows = open_rows(source, split=split, separator=separator, root=image_root)
        ks = _cutoffs(k or "1,5,10")
        prompts: dict[str, Any] = {"templates": template or ("{}",), "classes": classes}
        sides = [
            scores_of_rows(
                load(model, device, dtype, backend, exact_decoding),
                rows,
                image=image,
                text=text,
                label=label,
                ks=ks,
                **prompts,
            )
            for model in (a, b)
        ]
    found = compare_scores(sides[0], sides[1], metric or _headlines(sides[0]), resamples=resamples)
    write_json(json, {"a": a, "b": b, **found.to_dict()})
    print_comparison(found, a, b, of="rows" if query else "pictures")
    print_what_counts(sides[0])


def _search(
    source: str,
    split: str | None,
    table: Mapping[str, Any],
    pictures: tuple[str, str],
    texts: tuple[str | None, str | None],
    options: dict[str, Any],
    ks: Sequence[int] | None,
) -> Callable[[Encoder, int], dict[str, Scores]]:
    """From a model and a number of resamples to scores: of a BEIR folder, of two columns of text, or of pictures."""
    from mmcl.data.sources.beir import is_beir, open_beir
    from mmcl.data.sources.tar.rows import open_rows
    from mmcl.evaluation import beir_retrieval, retrieval_of_texts
    from mmcl.evaluation.tasks.rows import retrieval_of_rows

    query, document = texts
    if (query is None) != (document is None):
        raise MmclError("--query and --document go together: the column to search with, and the one to search in")
    if query is None and is_beir(source):
        beir = open_beir(source, split)
        return lambda encoder, resamples: {
            "query_to_document": beir_retrieval(encoder, beir, ks or (1, 10, 100), bootstrap=resamples, **options)
        }
    rows = open_rows(source, split=split, **table)
    if query is not None and document is not None:
        return lambda encoder, resamples: retrieval_of_texts(
            encoder, rows, query=query, document=document, ks=ks or (1, 5, 10), bootstrap=resamples, **options
        )
    if "self_matches" in options:
        raise MmclError(
            f"{source}: --self-matches is of searches for texts by texts, a folder in BEIR's layout or --query and "
            "--document; leave it out"
        )

    def with_pictures(encoder: Encoder, resamples: int) -> dict[str, Scores]:
        if "image" not in encoder.modalities:
            raise MmclError(
                f"{rows.name}: the model embeds texts only; name the column to search with and the one to search in by "
                f"--query and --document: it has {', '.join(rows.column_names)}"
            )
        image, text = pictures
        return retrieval_of_rows(encoder, rows, image=image, text=text, ks=ks or (1, 5, 10), bootstrap=resamples)

    return with_pictures


def _self_matches(given: str | None) -> dict[str, str]:
    """The rule as an option of a judge, which has its own otherwise."""
    from mmcl.evaluation.tasks.retrieval import check_self_matches

    if given is None:
        return {}
    check_self_matches(given)
    return {"self_matches": given}


def _headlines(sides: Mapping[str, Any]) -> list[str] | None:
    """What to compare of graded judgements; None for the comparison's own choice."""
    from mmcl.evaluation.tasks.text_retrieval import HEADLINES

    judged = sides.get("query_to_document")
    if judged is None or "document_to_query" in sides:
        return None
    values = getattr(judged, "metrics", None) or judged.values
    return [name for name in HEADLINES if name in values] or None


def _pair_columns(pairs: str | None, score: str | None) -> dict[str, str]:
    """Role to column, of those that are named."""
    names = pairs.split(",") if pairs else []
    if pairs and (len(names) != 2 or not all(name.strip() for name in names)):
        raise MmclError(f"--pairs {pairs}: expected two columns, like sentence1,sentence2")
    columns = dict(zip(("sentence1", "sentence2"), (name.strip() for name in names), strict=False))
    return columns | ({"score": score} if score else {})


def _cutoffs(k: str) -> list[int]:
    if not all(number.strip().isdigit() for number in k.split(",")):
        raise MmclError(f"-k {k}: expected cut-offs like 1,5,10")
    return [int(number) for number in k.split(",")]


def _check_per_query(per_query: bool, json: Path | None) -> None:
    if per_query and json is None:
        raise MmclError("--per-query needs --json FILE to write the values to")


def _for_json(scores: Mapping[str, Scores | ZeroShotScores], per_query: bool) -> dict[str, Any]:
    from mmcl.evaluation.compare import Queries

    return {
        name: {**judged.to_dict(), **({"per_query": Queries.of(judged).to_dict()} if per_query else {})}
        for name, judged in scores.items()
    }
