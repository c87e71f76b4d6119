"""The option that keeps the values of single queries, and the JSON that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcl.runtime.errors import MmclError

if TYPE_CHECKING:
    from mmcl.evaluation import Scores
    from mmcl.evaluation.tasks.classification.scores import ClassificationScores

PerQuery = Annotated[
    bool, typer.Option("--per-query", help="Keep every query's values in the --json file, for mmcl eval compare.")
]


def check_per_query(per_query: bool, json: Path | None) -> None:
    """Raise ``MmclError`` where the values of every query are wanted and no file to write them to."""
    if per_query and json is None:
        raise MmclError("--per-query needs --json FILE to write the values to")


def for_json(scores: Mapping[str, Scores | ClassificationScores], per_query: bool) -> dict[str, Any]:
    """The scores as JSON has them, by the same names; with the values of every query, if they are wanted."""
    from mmcl.evaluation.compare import Queries

    return {
        name: {**judged.to_dict(), **({"per_query": Queries.of(judged).to_dict()} if per_query else {})}
        for name, judged in scores.items()
    }
