"""How good a ranking is, whatever made it: vectors, words, or both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmcl.evaluation.inputs import cutoffs
from mmcl.evaluation.left_out import SelfMatches, check_self_matches
from mmcl.evaluation.metrics import bootstrap as bootstrapping
from mmcl.evaluation.metrics import ranks as measures
from mmcl.evaluation.metrics.ranking import MISSING, Judgements
from mmcl.evaluation.tasks.retrieval import Scores
from mmcl.runtime.errors import MmclError

Qrels = Mapping[Any, Mapping[Any, float]]


def judge_ranking(
    query_ids: Sequence[Any],
    ids: np.ndarray,
    qrels: Qrels,
    ks: Iterable[int] = (1, 10, 100),
    *,
    corpus: int,
    self_matches: SelfMatches = "keep",
    bootstrap: int = 1000,
    seed: int = 0,
) -> Scores:
    """Score rankings against graded judgements, as :func:`mmcl.evaluation.retrieval` does vectors.

    What is not in a ranking counts as never found, so a metric is that of the whole corpus where the ranking is as deep
    as its cut-off.

    Args:
        query_ids: Q of them.
        ids: (Q, n) ids of documents, best first; None in places left. Of equal ids in a row the first counts.
        qrels: {query id: {document id: grade}}; grades above 0 are relevant. Queries without any are left out.
        ks: cut-offs.
        corpus: how many documents there are.
        self_matches: see :func:`mmcl.evaluation.retrieval`.
        bootstrap: resamples for the intervals.
        seed: of the resamples.

    Raises:
        MmclError: not as many rankings as queries, none of them judged, or no document relevant.
    """
    check_self_matches(self_matches)
    if len(query_ids) != len(ids):
        raise MmclError(f"{len(ids):,} rankings of {len(query_ids):,} queries; give one for each")
    judged = [row for row, query in enumerate(query_ids) if qrels.get(query)]
    ranks: list[float] = []
    grades: list[float] = []
    offsets, own = [0], 0
    for row in judged:
        query, names = query_ids[row], ids[row].tolist()
        own += query in names
        places = _places(names, query if self_matches == "drop" else None)
        relevant = [(name, grade) for name, grade in qrels[query].items() if grade > 0]
        ranks += [places.get(name, np.inf) for name, _ in relevant]
        grades += [grade for _, grade in relevant]
        offsets.append(len(ranks))
    if not ranks:
        raise MmclError(
            f"qrels name no relevant document for any of the queries: they judge such as {next(iter(qrels), None)!r}, "
            f"the queries are such as {next(iter(query_ids), None)!r}"
        )
    judgements = Judgements(np.array(offsets), np.full(len(ranks), MISSING), np.array(grades, dtype=np.float64))
    found = np.array(ranks)
    values = measures.per_query(found, judgements, cutoffs(ks))
    values["median_rank"] = np.minimum(values["median_rank"], corpus + 1)
    metrics, intervals = bootstrapping.estimate(measures.statistic(values), len(judged), resamples=bootstrap, seed=seed)
    known = set(query_ids)
    return Scores(
        metrics=metrics,
        intervals=intervals,
        per_query=values,
        query_ids=[query_ids[row] for row in judged],
        relevant=judgements.sizes,
        found=np.bincount(judgements.queries, weights=np.isfinite(found), minlength=len(judged)).astype(np.int64),
        candidates=np.full(len(judged), corpus),
        ks=cutoffs(ks),
        corpus=corpus,
        skipped_queries=len(query_ids) - len(judged),
        missing_queries=sum(1 for query, documents in qrels.items() if query not in known and documents),
        self_matches=self_matches,
        queries_in_corpus=own,
    )


def _places(names: Sequence[Any], left_out: Any) -> dict[Any, int]:
    """The rank of each document, from 1."""
    distinct = dict.fromkeys(name for name in names if name is not None and name != left_out)
    return {name: rank for rank, name in enumerate(distinct, start=1)}
