"""mmcl eval compare: whether one model is better than another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from mmcl.cli.evaluate.scores import print_comparison, print_what_counts
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
    Query,
    SelfMatches,
    Separator,
    Split,
    Templates,
    Ties,
    cutoffs,
    load,
    names_columns,
)
from mmcl.cli.output import JsonPath, write_json
from mmcl.runtime.errors import MmclError

Captions = Annotated[
    str | None,
    typer.Option(help="The column of captions: compare retrieval.", show_default="text, unless --label is alone"),
]
Labels = Annotated[
    str | None, typer.Option(help="The column of classes: compare zero-shot classification.", show_default=False)
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(help="A metric to compare, such as ndcg@10; repeat it.", show_default="hit@k, mrr, top@k, ..."),
]


@names_columns
def compare(
    a: Annotated[str, typer.Argument(help="A model, a TREC run, or a file of --json --per-query.", show_default=False)],
    b: Annotated[str, typer.Argument(help="The same of another.", show_default=False)],
    source: Annotated[
        str | None,
        typer.Argument(
            help="Rows or a BEIR folder to judge both on; of two runs, or qrels; none for two .json files.",
            show_default=False,
        ),
    ] = None,
    split: Split = None,
    image: ImageColumn = "image",
    text: Captions = None,
    label: Labels = None,
    query: Query = None,
    document: Document = None,
    self_matches: SelfMatches = None,
    ties: Ties = None,
    template: Templates = None,
    classes: Classes = None,
    k: CutOffs = None,
    metric: Metrics = None,
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
    metrics. The captions of one image are resampled together. Of two models of text: a folder in BEIR's layout, or
    --query and --document; on pairs of sentences with scores: mmcl eval sts A TABLE --against B. Of runs: their queries
    are those that are judged, and one that a run lacks scores 0.
    """
    from mmcl.data.sources.tar.rows import open_rows
    from mmcl.evaluation import compare as compare_scores
    from mmcl.evaluation.compare import headlines_of
    from mmcl.evaluation.tasks.search import Searched, judge_each

    if self_matches is not None and (source is None or label is not None):
        raise MmclError("--self-matches is of searches for texts by texts, which this does not measure; leave it out")

    def open_model(name: str) -> Any:
        return load(name, device, dtype, backend, exact_decoding)

    table: dict[str, Any] = {"split": split, "separator": separator, "root": image_root}
    if source is None or label is None:
        searched = Searched(
            image, text or "text", query, document, self_matches=self_matches, ks=cutoffs(k), ties=ties  # type: ignore[arg-type]
        )  # fmt: skip
        sides = judge_each((a, b), open_model, source, searched, **table)
    else:
        options: dict[str, Any] = {"image": image, "text": text, "label": label, "ks": cutoffs(k) or (1, 5, 10)}
        options |= {"templates": template or ("{}",), "classes": classes}
        sides = _classify(map(open_model, (a, b)), open_rows(source, **table), options)
    found = compare_scores(sides[0], sides[1], metric or headlines_of(sides[0]), resamples=resamples)
    write_json(json, {"a": a, "b": b, **found.to_dict()})
    print_comparison(found, a, b, of="rows" if query else "images")
    print_what_counts(sides[0])


def _classify(models: Iterable[Any], rows: Any, options: dict[str, Any]) -> list[Mapping[str, Any]]:
    """Classification by each model, and retrieval where a column of captions is named."""
    from mmcl.evaluation.tasks.rows import scores_of_rows

    return [scores_of_rows(model, rows, **options) for model in models]
