"""mmcl eval: judge a model, or compare two."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcl.cli.output import JsonPath, print_table, write_json
from mmcl.runtime.errors import MmclError

if TYPE_CHECKING:
    from mmcl.evaluation import Comparison, Diagnostics, Scores, ZeroShotScores
    from mmcl.models.encoder import Encoder

app = typer.Typer(help="Judge a model, or compare two.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="A model or run folder, or a name.", show_default=False)]
Source = Annotated[str, typer.Argument(help="Rows: a file, folder or name.", show_default=False)]
Split = Annotated[str | None, typer.Option(help="The part of the source to read.")]
ImageColumn = Annotated[str, typer.Option(help="The column of pictures.")]
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
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")]
CutOffs = Annotated[str, typer.Option("-k", help="Cut-offs.")]
PerQuery = Annotated[
    bool, typer.Option("--per-query", help="Keep every query's values in the --json file, for mmcl eval compare.")
]


@app.command()
def retrieval(
    model: Model,
    source: Source,
    split: Split = None,
    image: ImageColumn = "image",
    text: Annotated[str, typer.Option(help="The column of captions, one or a list a row.")] = "text",
    k: CutOffs = "1,5,10",
    device: Device = "auto",
    json: JsonPath = None,
    per_query: PerQuery = False,
) -> None:
    """Find texts by picture and pictures by text, exactly, with 95% intervals. A tie never helps.

    A row may have several captions: each is a query, and any of them is a right answer for the picture. Equal captions
    are right for each other's pictures (but not in clip_benchmark's numbers). A data set with captions in Karpathy's
    JSON layout, or a CSV with a caption a row, is judged as it is: mmcl eval retrieval MODEL dataset_coco.json --split
    test.
    """
    from mmcl.data.sources import open_source
    from mmcl.evaluation.rows import retrieval_of_rows

    ks = _cutoffs(k)
    _check_per_query(per_query, json)
    scores = retrieval_of_rows(_load(model, device), open_source(source, split=split), image=image, text=text, ks=ks)
    theirs = {name: value for judged in scores.values() for name, value in judged.clip_benchmark.items()}
    write_json(json, {**_for_json(scores, per_query), "clip_benchmark": theirs})
    print_scores(scores)


@app.command("zero-shot")
def zero_shot(
    model: Model,
    source: Source,
    label: Annotated[str, typer.Option(help="The column of class names or numbers.", show_default=False)],
    split: Split = None,
    image: ImageColumn = "image",
    template: Templates = None,
    classes: Classes = None,
    device: Device = "auto",
    json: JsonPath = None,
    per_query: PerQuery = False,
) -> None:
    """Classify pictures by the names of the classes alone.

    ImageNet as the CLIP paper does it: --classes imagenet --template openai.
    """
    from mmcl.data.sources import open_source
    from mmcl.evaluation.rows import zero_shot_of_rows

    _check_per_query(per_query, json)
    scores = zero_shot_of_rows(
        _load(model, device),
        open_source(source, split=split),
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
    _print_metrics(scores, theirs, title)


@app.command()
def diagnostics(
    model: Model,
    source: Source,
    split: Split = None,
    image: Annotated[
        str | None, typer.Option(help="The column of pictures.", show_default="image, unless --text is alone")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="The column of captions.", show_default="text, unless --image is alone")
    ] = None,
    device: Device = "auto",
    json: JsonPath = None,
) -> None:
    """Is the space used, do the modalities meet, has it collapsed. Name one column to look at one modality alone."""
    from mmcl.data.sources import open_source
    from mmcl.evaluation.rows import diagnostics_of_rows

    if image is None and text is None:
        image, text = "image", "text"
    found = diagnostics_of_rows(_load(model, device), open_source(source, split=split), image=image, text=text)
    write_json(json, found.to_dict())
    print_diagnostics(found)


@app.command()
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
    template: Templates = None,
    classes: Classes = None,
    k: CutOffs = "1,5,10",
    metric: Annotated[
        list[str] | None,
        typer.Option(help="A metric to compare, such as ndcg@10; repeat it.", show_default="hit@k, mrr, top@k, ..."),
    ] = None,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap and of the test.", min=1)] = 10_000,
    device: Device = "auto",
    json: JsonPath = None,
) -> None:
    """Is B better than A, or luckier: differences with 95% intervals and a paired test, over the same queries.

    An interval is a paired bootstrap; p is a paired randomisation test, Holm's adjustment of it is for the number of
    metrics. The captions of one picture are resampled together.
    """
    from mmcl.evaluation import compare as compare_scores
    from mmcl.evaluation.compare import read_per_query

    if source is None:
        if not (a.endswith(".json") and b.endswith(".json")):
            raise MmclError(f"compare {a} {b}: name a source to judge both models on, or give two .json files")
        sides: list[Mapping[str, Any]] = [read_per_query(a), read_per_query(b)]
    else:
        from mmcl.data.sources import open_source
        from mmcl.evaluation.rows import scores_of_rows

        rows, ks = open_source(source, split=split), _cutoffs(k)
        text = "text" if text is None and label is None else text
        prompts: dict[str, Any] = {"templates": template or ("{}",), "classes": classes}
        sides = [
            scores_of_rows(_load(model, device), rows, image=image, text=text, label=label, ks=ks, **prompts)
            for model in (a, b)
        ]
    found = compare_scores(sides[0], sides[1], metric or None, resamples=resamples)
    write_json(json, {"a": a, "b": b, **found.to_dict()})
    print_comparison(found, a, b)


def print_scores(scores: Mapping[str, Scores]) -> None:
    """One table a direction: the metrics, their intervals, what chance would give, and clip_benchmark's names."""
    for way, judged in scores.items():
        theirs = {f"hit@{name.partition('@')[2]}": name for name in judged.clip_benchmark}
        _print_metrics(judged, theirs, f"{way}: {judged.queries:,} queries, corpus of {judged.corpus:,}")


def print_diagnostics(found: Diagnostics) -> None:
    """The modalities side by side, what the best numbers would be, and the warnings."""
    spaces, between = found.spaces, found.between
    dim = next(iter(spaces.values())).dim
    measures = {
        "uniformity": f"lower; a uniform sphere has {-4 + 8 / dim:.2f}",
        "effective_rank": f"higher; at most {dim}",
        "random_cosine": "near 0",
        "top_component": f"lower; at least {1 / dim:.4f}",
        "dead_dimensions": "0",
        "alignment": "lower",
        "positive_cosine": "higher, far above random_cosine",
        "modality_gap": "lower",
    }
    columns = [*spaces.values(), *([between] if between else [])]
    names = [*spaces, *(["between"] if between else [])]
    rows = [
        [measure, *(getattr(column, measure, "") for column in columns), good] for measure, good in measures.items()
    ]
    rows = [row for row in rows if any(cell != "" for cell in row[1:-1])]
    size = ", ".join(f"{space.rows:,} {name}" for name, space in spaces.items())
    print_table(["measure", *names, "good is"], rows, title=f"{size} vectors of {dim} dimensions")
    for name, space in spaces.items():
        if space.uniformity_rows < space.rows:
            print(f"uniformity of {name}: all pairs of {space.uniformity_rows:,} rows drawn at random")
    for reason in found.collapsed or ["no sign of collapse"]:
        print(f"warning: {reason}" if found.collapsed else reason)


def print_comparison(found: Comparison, a: str, b: str) -> None:
    """A row a metric, and the verdict."""
    rows = [
        [
            name,
            row.a,
            row.b,
            f"{row.difference:+.4f}",
            f"{row.low:+.4f} – {row.high:+.4f}",
            row.p,
            row.p_holm,
            {"a": "A", "b": "B", None: ""}[row.ahead],
        ]
        for name, row in found.differences.items()
    ]
    columns = ["metric", "A", "B", "B − A", "95% interval", "p", "p (Holm)", "ahead"]
    print_table(columns, rows, title=f"A: {a}\nB: {b}")
    print(found.verdict())
    sizes = sorted({(row.queries, row.groups) for row in found.differences.values()})
    told = ", ".join(f"{q:,} queries" if q == g else f"{q:,} queries of {g:,} pictures" for q, g in sizes)
    print(f"paired over {told}; {found.resamples:,} resamples; ahead: interval without 0 and p (Holm) < 0.05")


def _print_metrics(judged: Scores | ZeroShotScores, theirs: Mapping[str, str], title: str) -> None:
    """``theirs`` is what clip_benchmark calls a metric of ours; its number is shown where it differs."""
    chance, rows = judged.chance(), []
    for name, value in judged.metrics.items():
        low, high = judged.intervals[name]
        same, other = theirs.get(name, ""), judged.clip_benchmark.get(theirs.get(name, ""), value)
        named = same if f"{other:.4f}" == f"{value:.4f}" else f"{same} {other:.4f}"
        rows.append([name, value, f"{low:.4f} – {high:.4f}", chance.get(name, "–"), named])
    print_table(["metric", "value", "95% interval", "chance", "clip_benchmark"], rows, title=title)


def _load(model: str, device: str) -> Encoder:
    import mmcl
    from mmcl.runtime.device import pick_device

    return mmcl.load(model).to(pick_device(device))


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
