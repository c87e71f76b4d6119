"""mmcl eval retrieval."""

from __future__ import annotations

from typing import Annotated

import typer

from mmcl.cli.evaluate.per_query import PerQuery, check_per_query, for_json
from mmcl.cli.evaluate.scores import print_comparison, print_scores
from mmcl.cli.options import (
    Against,
    AllowPipe,
    Backend,
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
    Split,
    cutoffs,
    load,
    names_columns,
)
from mmcl.cli.output import JsonPath, write_json

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
    check_per_query(per_query, json)
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
    write_json(json, {**for_json(scores, per_query), "clip_benchmark": theirs, **tested})
    print_scores(scores)
    if found is not None:
        print_comparison(found, model, str(against), of="rows" if query else "images")
