"""mmcl eval retrieval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    Query,
    SelfMatches,
    Separator,
    Split,
    Ties,
    cutoffs,
    load,
    names_columns,
)
from mmcl.cli.output import JsonPath, checked_file, write_json

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
Complete = Annotated[bool, typer.Option(help="Judged queries that a run lacks score 0, as by trec_eval -c.")]
RunFile = Annotated[
    Path | None,
    typer.Option(
        "--run",
        help="Write the first 1,000 documents of each query here, as TREC does; - is stdout.",
        show_default=False,
        callback=checked_file,
    ),
]


@names_columns
def retrieval(
    model: Annotated[
        str, typer.Argument(help="A model or run folder, or a name; or a file with a TREC run.", show_default=False)
    ],
    source: Annotated[
        str,
        typer.Argument(
            help="Rows: a file, folder or name; or a folder in BEIR's layout; of a TREC run, or its qrels.",
            show_default=False,
        ),
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
    ties: Ties = None,
    complete: Complete = False,
    run: RunFile = None,
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

    Runs of other systems: mmcl eval retrieval RUN.trec QRELS, as trec_eval -m all_trec QRELS RUN.trec judges them.
    """
    check_per_query(per_query, json)
    from mmcl.evaluation import compare as compare_scores
    from mmcl.evaluation.compare import headlines_of
    from mmcl.evaluation.tasks.search import Searched, open_judged, open_retrieval

    def open_model(name: str) -> Any:
        return load(name, device, dtype, backend, exact_decoding)

    towers: dict[str, Any] = {"tower": tower, "document_tower": document_tower}
    options: dict[str, Any] = {"self_matches": self_matches, "ks": cutoffs(k), "ties": ties, "complete": complete}
    searched = Searched(image, text, query, document, query_prompt, document_prompt, **options, **towers)
    table: dict[str, Any] = {"split": split, "separator": separator, "root": image_root}
    names = [name for name in (model, against) if name is not None]
    evaluate = open_retrieval(source, searched, of=names, **table)
    scores = evaluate(open_judged(model, open_model, towers.values()), 1000, run)
    theirs = {name: value for judged in scores.values() for name, value in judged.clip_benchmark.items()}
    found = None
    if against is not None:
        found = compare_scores(scores, evaluate(open_judged(against, open_model), 0), headlines_of(scores))
    tested = {} if found is None else {"against": {"a": model, "b": against, **found.to_dict()}}
    write_json(json, {**for_json(scores, per_query), "clip_benchmark": theirs, **tested})
    print_scores(scores)
    if found is not None:
        print_comparison(found, model, str(against), of="rows" if query else "images")
