"""By which weights rankings are best fused, learned on judged queries and judged on others."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmcl.evaluation.inputs import cutoffs
from mmcl.evaluation.left_out import SelfMatches
from mmcl.evaluation.tasks.retrieval import Scores
from mmcl.evaluation.tasks.runs import retrieval_run
from mmcl.retrieval.search.fusion import Ranking, fused, scaled
from mmcl.runtime.errors import MmclError, nearest

_STEPS = 20  # of the weights, which add up to 1: the optimum is flat


@dataclass(frozen=True)
class Learned:
    """Weights of rankings, and what weights so learned give on queries that they were not learned on.

    Attributes:
        weights: M, which add up to 1, learned on all queries.
        scores: by cross-validation: each query is ranked by the weights that were learned without its fold. The
            intervals are over queries.
        folds: the weights of each fold; where they differ much, the queries are too few to learn from.
        metric: the mean of which is highest with these weights.
    """

    weights: tuple[float, ...]
    scores: Scores
    folds: list[tuple[float, ...]]
    metric: str

    def to_dict(self) -> dict[str, Any]:
        """What to keep of it, ready for JSON."""
        return {
            "metric": self.metric,
            "queries": self.scores.queries,
            "value": self.scores.metrics[self.metric],
            "interval": list(self.scores.intervals.get(self.metric, ())),
            "folds": [list(weights) for weights in self.folds],
        }


def learn_weights(
    rankings: Sequence[Ranking],
    query_ids: Sequence[Any],
    qrels: Mapping[Any, Mapping[Any, float]],
    ks: Iterable[int] = (1, 10, 100),
    *,
    metric: str = "ndcg@10",
    folds: int = 5,
    self_matches: SelfMatches = "keep",
    bootstrap: int = 1000,
    seed: int = 0,
) -> Learned:
    """The weights of :func:`mmcl.retrieval.search.fusion.weighted` with the highest mean of a metric.

    All weights in steps of 0.05 that add up to 1 are tried; of equally good ones the most even are taken.

    Args:
        rankings: M, of the same Q queries, as deep as they will be when they are fused.
        query_ids: Q.
        qrels: {query id: {document id: grade}}.
        ks: cut-offs of what is reported.
        metric: such as ``ndcg@10``, ``recall@100`` or ``mrr``; its cut-off is one of ``ks``.
        folds: of the cross-validation.
        self_matches: see :func:`mmcl.evaluation.retrieval`.
        bootstrap: resamples for the intervals.
        seed: of the folds and the resamples.

    Raises:
        MmclError: fewer judged queries than folds, or as :func:`mmcl.evaluation.tasks.runs.retrieval_run`.
    """
    ks = cutoffs(ks)
    judged = [row for row, query in enumerate(query_ids) if qrels.get(query)]
    if folds < 2 or len(judged) < folds:
        raise MmclError(
            f"{len(judged):,} judged queries and {folds} folds; give 2 to as many folds as queries (--folds)"
        )
    names = [query_ids[row] for row in judged]
    parts = [Ranking(ranking.ids[judged], ranking.scores[judged], ranking.floor) for ranking in rankings]
    points, grid = [scaled(part) for part in parts], list(_grid(len(parts)))
    judgements = {name: qrels[name] for name in names}
    options: dict[str, Any] = {"self_matches": self_matches, "complete": True, "seed": seed}
    tried = [fused(parts, points, weights, max(ks)).ids for weights in grid]
    values = []
    for ids in tried:
        measured = retrieval_run(as_run(names, ids), judgements, ks, bootstrap=0, **options).per_query
        if metric not in measured or metric == "median_rank":
            raise MmclError(f"no metric '{metric}' to learn by; {nearest(metric, measured)}")
        values.append(measured[metric])
    table = np.stack(values)  # (W, Q)
    fold = np.random.default_rng(seed).permutation(len(judged)) % folds
    chosen = [_best(table[:, fold != number], grid) for number in range(folds)]
    ids = np.stack([tried[chosen[number]][row] for row, number in enumerate(fold.tolist())])
    scores = retrieval_run(as_run(names, ids), judgements, ks, bootstrap=bootstrap, **options)
    return Learned(grid[_best(table, grid)], scores, [grid[best] for best in chosen], metric)


def as_run(query_ids: Sequence[Any], ids: np.ndarray) -> dict[Any, dict[Any, float]]:
    """A run, as ``retrieval_run`` takes it, of (Q, n) ids of documents, best first; None in places left. Of equal ids
    in a row the first counts."""
    run = {}
    for query, names in zip(query_ids, ids.tolist(), strict=True):
        distinct = dict.fromkeys(name for name in names if name is not None)
        run[query] = {name: -float(rank) for rank, name in enumerate(distinct, start=1)}
    return run


def _best(table: np.ndarray, grid: Sequence[tuple[float, ...]]) -> int:
    """The row of ``grid`` with the highest mean; of equal ones the most even."""
    means = table.mean(axis=1)
    return max(range(len(grid)), key=lambda row: (round(float(means[row]), 12), -max(grid[row])))


def _grid(count: int) -> Iterator[tuple[float, ...]]:
    """All weights of ``count`` rankings that are multiples of 1/steps and add up to 1."""
    for bars in itertools.combinations(range(_STEPS + count - 1), count - 1):
        ends = (-1, *bars, _STEPS + count - 1)
        yield tuple((after - before - 1) / _STEPS for before, after in itertools.pairwise(ends))
