"""mmcl eval hybrid."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmcl.cli.evaluate.per_query import PerQuery, check_per_query, for_json
from mmcl.cli.evaluate.scores import print_what_counts
from mmcl.cli.options import CutOffs, Device, Dtype, SelfMatches, Split, cutoffs
from mmcl.cli.output import JsonPath, print_table, say, write_json

if TYPE_CHECKING:
    from mmcl.evaluation import Scores


def hybrid(
    index: Annotated[
        Path, typer.Argument(help="An index of the documents, with words (mmcl index lexical).", show_default=False)
    ],
    source: Annotated[str, typer.Argument(help="A folder in BEIR's layout.", show_default=False)],
    split: Split = None,
    model: Annotated[
        str | None, typer.Option(help="The encoder of the queries.", show_default="the one the index was made with")
    ] = None,
    metric: Annotated[str, typer.Option(help="What the weights are learned by.")] = "ndcg@10",
    folds: Annotated[int, typer.Option(min=2, help="Parts of the queries for cross-validation.")] = 5,
    keep: Annotated[bool, typer.Option("--keep", help="Have mmcl search --hybrid use the learned weights.")] = False,
    self_matches: SelfMatches = None,
    k: CutOffs = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: JsonPath = None,
    per_query: PerQuery = False,
) -> None:
    """Search by vectors, by words, and by both, with weights learned on the judged queries.

    The learned weights are judged by cross-validation: on queries that they were not learned on.
    """
    check_per_query(per_query, json)
    from mmcl.data.sources.beir import open_beir
    from mmcl.evaluation.rankings import judge_hybrid
    from mmcl.evaluation.tasks.text_retrieval import HEADLINES
    from mmcl.retrieval import Searcher

    beir = open_beir(source, split)
    searcher = Searcher(index, model, device=device, dtype=dtype)
    found = judge_hybrid(
        searcher, beir, cutoffs(k) or (1, 10, 100), metric=metric, folds=folds, self_matches=self_matches or "drop"  # type: ignore[arg-type]
    )  # fmt: skip
    first = found.scores["vectors"]
    names = [name for name in dict.fromkeys((*HEADLINES, metric)) if name in first.metrics]
    rows = [[name, *(_shown(judged, name) for judged in found.scores.values())] for name in names]
    print_table(["metric", *found.scores], rows, title=f"{first.queries:,} queries, corpus of {len(searcher.index):,}")
    vectors, words = found.learned.weights
    without = ", ".join(f"{weights[0]:g}" for weights in found.learned.folds)
    say(
        f"learned weights: vectors {vectors:g}, words {words:g}; of vectors without each part of the queries: {without}"
    )
    print_what_counts({"vectors": first})
    if keep:
        searcher.keep_fusion(found.fusion)
        say(f"kept: mmcl search {index} --hybrid uses them")
    learned = found.learned.to_dict() | {"weights": found.learned.weights}
    write_json(json, {"scores": for_json(found.scores, per_query), "learned": learned})


def _shown(judged: Scores, name: str) -> str:
    low, high = judged.intervals[name]
    return f"{judged.metrics[name]:.4f} ({low:.4f} – {high:.4f})"
